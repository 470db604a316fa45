"""The options that name a memory configuration: llama-server's own words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Layers(click.ParamType[int | None]):
    """A count of layers, or all."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value in ("all", "auto", "-1", -1):
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'all'", param, ctx)


class Shares(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).replace("/", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between", param, ctx)


class Overrides(click.ParamType[tuple[tuple[str, str], ...]]):
    """PATTERN=DEVICE, with commas between."""

    name = "overrides"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, str], ...]:
        if isinstance(value, tuple):
            return value
        pairs = [part.rpartition("=") for part in str(value).split(",")]
        if any(not pattern or not device for pattern, _, device in pairs):
            self.fail(f"{value!r} is not PATTERN=DEVICE", param, ctx)
        return tuple((pattern, device) for pattern, _, device in pairs)


class SizeInMib(click.ParamType[int]):
    """MiB as llama-server takes them: -1 for no limit."""

    name = "MiB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            mib = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of MiB", param, ctx)
        return -1 if mib < 0 else mib * 1024**2


_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--quant", metavar="PRESET", help="Preset of the weights; left out, as the model's file has them."),
    click.option("--ctx", "n_ctx", type=int, help="Tokens of the whole pool, as -c; left out, the trained context."),
    click.option("--parallel", "n_parallel", type=int, help="Slots, as -np; left out, 4 that share one cache."),
    click.option("--kv-unified/--no-kv-unified", default=None, help="Whether the slots share one cache."),
    click.option("--batch", "n_batch", type=int, default=2048, show_default=True, help="Batch, as -b."),
    click.option("--ubatch", "n_ubatch", type=int, default=512, show_default=True, help="Micro-batch, as -ub."),
    click.option("--type-k", default="f16", show_default=True, help="Type of the K cache."),
    click.option("--type-v", default="f16", show_default=True, help="Type of the V cache."),
    click.option("--flash-attn", type=click.Choice(["on", "off", "auto"]), default="auto", show_default=True,
                 help="Flash attention."),
    click.option("--n-gpu-layers", type=Layers(), help="Layers on the GPU, the head first; or all."),
    click.option("--tensor-split", type=Shares(), help="Share of each GPU, as 3,1; left out, by free memory."),
    click.option("--n-cpu-moe", type=int, default=0, help="Layers whose experts stay on the CPU, from the first."),
    click.option("--cpu-moe", is_flag=True, help="All experts stay on the CPU."),
    click.option("--override-tensor", "overrides", type=Overrides(), default=(), help="PATTERN=DEVICE, as -ot."),
    click.option("--swa-full", is_flag=True, help="Keep the whole context in sliding-window layers too."),
    click.option("--cache-ram", "cache_ram_bytes", type=SizeInMib(), help="Limit of the prompt cache in MiB (8192)."),
    click.option("--mmproj", type=_EXISTING, help="A projector that is loaded too."),
    click.option("--draft", help="A draft model that is loaded too."),
    click.option("--lora", type=_EXISTING, multiple=True, help="An adapter that is loaded too (repeatable)."),
)  # fmt: skip


def memory_options(function: F) -> F:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
