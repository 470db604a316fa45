"""The engine behind the gateway: llama-server, or its router for several plans, on the loopback."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.errors import DoesNotFit
from quantplan.llama.router import preset_file, router
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.api_key import keys_in
from quantplan.serving.gateway.swap import fits, needs_of, usable_of
from quantplan.serving.runtimes import Launch, Runtime, Serving, launch_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to be served: its file and its plan."""

    file: Path
    plan: Plan


def most_together(plans: Mapping[str, Plan]) -> int:
    """How many of the plans fit at once, at most. Raises DoesNotFit when one does not fit alone."""
    usable, needs = usable_of(tuple(plans.values())), {name: needs_of(plan) for name, plan in plans.items()}
    for name, need in needs.items():
        if not fits([need], usable):
            device = next(one for one in need if need[one] > (usable or {}).get(one, 0))
            raise DoesNotFit(device=device, need_bytes=need[device], free_bytes=(usable or {})[device], what=name)
    by_size = sorted(needs.values(), key=lambda need: sum(need.values()))
    return max(n for n in range(1, len(by_size) + 1) if fits(by_size[:n], usable) or n == 1)


def engine_launch(
    models: Mapping[str, Model], *, port: int, api_key_file: Path, tools: Toolchain, work: Path
) -> Launch:
    """The engine behind the gateway, on the loopback: llama-server for one model, its router for several.

    Raises DoesNotFit (a model that does not fit alone), BadValue (a path or name the preset file cannot hold).
    """
    serving = Serving(host="127.0.0.1", port=port, api_key_file=api_key_file)
    if len(models) == 1:
        model = next(iter(models.values()))
        return launch_of(Runtime.LLAMA_SERVER, model.plan, model=model.file, serving=serving, tools=tools, work=work)
    n_max = most_together({name: model.plan for name, model in models.items()})
    settings = {name: server_settings(model.plan, model=model.file) for name, model in models.items()}
    preset = work / "models.ini"
    preset.write_text(preset_file(settings, unified_per_slot=unified_per_slot(tools)), encoding="utf-8")
    argv = router(tools.programs["llama-server"], preset, host="127.0.0.1", port=port, n_models_max=n_max,
                  api_key_file=api_key_file)  # fmt: skip
    key = next(iter(keys_in(api_key_file)))
    return Launch(runtime=Runtime.LLAMA_SERVER, argv=argv, url=serving.url, health="/health", key=key)


@contextmanager
def engine_key() -> Iterator[tuple[Path, str]]:
    """A key of this run alone, in a file that only we can read: the engine answers nobody but the gateway."""
    with tempfile.TemporaryDirectory(prefix="quantplan-key-") as folder:
        path, key = Path(folder) / "engine.key", secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
        yield path, key
