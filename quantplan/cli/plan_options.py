"""What a plan is asked for, as options: the objective, the constraints, the margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from quantplan.planner.request import PlanRequest

F = TypeVar("F", bound=Callable[..., Any])

OBJECTIVES = ("balanced", "quality", "speed", "context", "throughput", "latency")
USES = ("general", "chat", "code", "reasoning", "agents", "tools", "vision", "embedding", "classification")
_PRESET_USES = {"chat": "general", "tools": "agents", "vision": "general", "embedding": "general"}


class Size(click.ParamType[int]):
    """A size as people write it: 8GiB, 24G, 500MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from quantplan.units import parse_size

        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class MarginOf(click.ParamType[tuple[str, int]]):
    """SIZE for every GPU, or DEVICE=SIZE."""

    name = "margin"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        device, mark, size = str(value).rpartition("=")
        named = {"ram": "Host", "host": "Host", "gpu": "GPU"}.get(device.lower(), device) if mark else "GPU"
        return named, Size().convert(size, param, ctx)


_OPTIONS = (
    click.option("--for", "objective", type=click.Choice(OBJECTIVES), default="balanced", show_default=True,
                 help="What the plan should be best at."),
    click.option("--use", type=click.Choice(USES), default="general", show_default=True,
                 help="What the model is for: code, reasoning, agents and tools want more faithful presets; for vision "
                 "the projector is counted."),
    click.option("--ctx", "n_ctx", type=int, help="Tokens of context a slot, exactly."),
    click.option("--min-ctx", "n_ctx_min", type=int,
                 help="Tokens of context a slot at least; left out, 8,192 and more where it is free."),
    click.option("--parallel", "n_parallel", type=int,
                 help="Slots: requests at a time; left out, 1 (with --for throughput, as many as are best)."),
    click.option("--quant", "quants", multiple=True, metavar="PRESET", help="Consider only this preset (repeatable)."),
    click.option("--kv", "kv", multiple=True, metavar="TYPE[/TYPE]",
                 help="Type of the cache, or of K/V (repeatable); left out, f16 and q8_0."),
    click.option("--ubatch", "n_ubatches", type=click.IntRange(1, 65536), multiple=True,
                 help="Micro-batch (repeatable); left out, 512, 1024 and 2048."),
    click.option("--device", "devices", multiple=True, metavar="NAME",
                 help="Use only this GPU (repeatable), or none; left out, those that are best."),
    click.option("--min-speed", "min_tokens_per_s", type=float, metavar="TOKENS/S", help="Least decode speed."),
    click.option("--max-ram", "max_ram_bytes", type=Size(), help="Most RAM of the host."),
    click.option("--max-disk", "max_disk_bytes", type=Size(), help="Most disk for the file."),
    click.option("--margin", "margins", type=MarginOf(), multiple=True, metavar="[DEVICE=]SIZE",
                 help="What stays free on each GPU, on one, or in RAM (RAM=2GiB); repeatable."),
    click.option("--cache-ram", "cache_ram_mib", type=click.IntRange(0), metavar="MIB",
                 help="The server's prompt cache; left out, half of what RAM has left, at most 8192."),
    click.option("--prompt", "n_prompt", type=click.IntRange(1), default=1024, show_default=True,
                 help="New tokens of a typical prompt: speeds are compared on such a request."),
    click.option("--answer", "n_answer", type=click.IntRange(1), default=256, show_default=True,
                 help="Tokens of a typical answer."),
    click.option("--depth", "n_depth", type=click.IntRange(0),
                 help="Tokens already in the context when speeds are compared; left out, the least context."),
    click.option("--draft", help="A draft model that is loaded too."),
    click.option("--mmproj", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="A projector that is loaded too, for a model that sees."),
)  # fmt: skip


def plan_options(function: F) -> F:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def request_from(
    *, objective: str, use: str, quants: Sequence[str], kv: Sequence[str], n_ubatches: Sequence[int],
    devices: Sequence[str], cache_ram_mib: int | None, n_prompt: int, n_answer: int, n_parallel: int | None,
    **same: Any,
) -> PlanRequest:  # fmt: skip
    """The request that the options make. Raises BadValue."""
    from quantplan.cli.options import preset
    from quantplan.planner.request import PRESETS, Objective, PlanRequest, Workload
    from quantplan.quant.uses import Use
    from quantplan.units import MIB

    aim = Objective(objective)
    given: dict[str, Any] = dict(same)
    if kv:
        given["kv_types"] = tuple(dict.fromkeys(_cache_type(one) for one in kv))
    if n_ubatches:
        given["n_ubatches"] = tuple(dict.fromkeys(n_ubatches))
    return PlanRequest(
        objective=aim,
        use=Use(_PRESET_USES.get(use, use)),
        quants=tuple(dict.fromkeys(preset(quant) for quant in quants)) or PRESETS,
        any_preset=bool(quants),
        devices=(() if "none" in devices else tuple(dict.fromkeys(devices))) if devices else None,
        cache_ram_bytes=None if cache_ram_mib is None else cache_ram_mib * MIB,
        workload=Workload(n_prompt=n_prompt, n_answer=n_answer),
        n_parallel=n_parallel if n_parallel is not None or aim is Objective.THROUGHPUT else 1,
        **given,
    )


def _cache_type(text: str) -> tuple[str, str]:
    """`q8_0` for both, or `K/V`."""
    from quantplan.errors import BadValue
    from quantplan.memory.placement import KV_TYPES

    k, _, v = text.lower().partition("/")
    for kind in (k, v or k):
        if kind.upper() not in KV_TYPES:
            raise BadValue(what="cache type", value=kind, why=f"is none of {', '.join(t.lower() for t in KV_TYPES)}")
    return k, v or k
