"""Starting llama-server's router for several plans, on the loopback."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.errors import DoesNotFit, ToolFailed
from quantplan.llama.process import start_tool, stop_tool
from quantplan.llama.router import preset_file, router
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.gateway.swap import fits, needs_of, usable_of
from quantplan.serving.launch import NotReady, check_port, healthy

_POLL_S = 0.1
_STOP_GRACE_S = 15.0  # it waits ten seconds for its own children (DEFAULT_STOP_TIMEOUT)
_LAST_LINES = 12

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to be served: its file and its plan."""

    file: Path
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRouter:
    """A router that answers; its children are processes below it."""

    port: int
    argv: tuple[str, ...]
    child: subprocess.Popen[bytes]


def most_together(plans: Mapping[str, Plan]) -> int:
    """How many of the plans fit at once, at most. Raises DoesNotFit when one does not fit alone."""
    usable, needs = usable_of(tuple(plans.values())), {name: needs_of(plan) for name, plan in plans.items()}
    for name, need in needs.items():
        if not fits([need], usable):
            device = next(one for one in need if need[one] > (usable or {}).get(one, 0))
            raise DoesNotFit(device=device, need_bytes=need[device], free_bytes=(usable or {})[device], what=name)
    by_size = sorted(needs.values(), key=lambda need: sum(need.values()))
    return max(n for n in range(1, len(by_size) + 1) if fits(by_size[:n], usable) or n == 1)


@contextmanager
def running_router(
    tools: Toolchain, models: Mapping[str, Model], *, port: int, api_key_file: Path | None, unified_per_slot: bool,
    log: Say, timeout_s: float = 60.0,
) -> Iterator[RunningRouter]:  # fmt: skip
    """The router with a preset for each model, none loaded yet; stopped with its children when the block ends.

    Raises PortInUse, ToolFailed, NotReady, DoesNotFit (a model that does not fit alone), BadValue (a path or name
    the preset file cannot hold).
    """
    n_max = most_together({name: model.plan for name, model in models.items()})
    check_port("127.0.0.1", port)
    settings = {name: server_settings(model.plan, model=model.file) for name, model in models.items()}
    text = preset_file(settings, unified_per_slot=unified_per_slot)
    with tempfile.TemporaryDirectory(prefix="quantplan-router-") as folder:
        preset = Path(folder) / "models.ini"
        preset.write_text(text, encoding="utf-8")
        argv = router(tools.programs["llama-server"], preset, host="127.0.0.1", port=port, n_models_max=n_max,
                      api_key_file=api_key_file)  # fmt: skip
        child = start_tool(argv, step="start llama-server", stderr=subprocess.STDOUT)
        last: deque[str] = deque(maxlen=_LAST_LINES)
        reader = threading.Thread(target=_pass_on, args=(child, last, log), name="router-log", daemon=True)
        reader.start()
        try:
            _wait(child, port, last, timeout_s=timeout_s)
            yield RunningRouter(port=port, argv=argv, child=child)
        finally:
            stop_tool(child, grace_s=_STOP_GRACE_S)
            reader.join(timeout=5)


def _pass_on(child: subprocess.Popen[bytes], last: deque[str], log: Say) -> None:
    assert child.stdout is not None
    with child.stdout as pipe:
        for raw in pipe:
            line = raw.decode("utf-8", errors="replace").rstrip()
            last.append(line)
            log(line)


def _wait(child: subprocess.Popen[bytes], port: int, last: deque[str], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (status := child.poll()) is not None:
            time.sleep(_POLL_S)
            raise ToolFailed(step="start llama-server", argv=("llama-server",), returncode=status,
                             last_lines=tuple(last))  # fmt: skip
        if healthy(f"http://127.0.0.1:{port}"):
            return
        time.sleep(_POLL_S)
    raise NotReady(seconds=timeout_s, last_lines=tuple(last))


@contextmanager
def engine_key() -> Iterator[tuple[Path, str]]:
    """A key of this run alone, in a file that only we can read: the engine answers nobody but the gateway."""
    import secrets

    with tempfile.TemporaryDirectory(prefix="quantplan-key-") as folder:
        path, key = Path(folder) / "engine.key", secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
        yield path, key
