"""`recommend --html` and `--png`: the plan as a page to look at, and its charts as pictures."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import say
from quantplan.cli.plan_tools import full_depth
from quantplan.cli.planning import Planned, buildable, own_preset, suited
from quantplan.planner.grid import MORE_CACHES, Explorer, Grid, axes_of, grid_of
from quantplan.planner.request import PRESETS
from quantplan.units import MIB

if TYPE_CHECKING:
    from quantplan.report.page import Subject

# What a position of the sliders says itself, and what says nothing about the plan
_NOT_REPEATED = ("model", "n_ctx", "n_ctx_min", "n_parallel", "quants", "kv", "n_ubatches")
_SIZES = ("max_ram_bytes", "max_disk_bytes")


def write_pictures(
    planned: Planned, answer: dict[str, Any], *, html: Path | None, png: Path | None, asked: dict[str, Any],
    warnings: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Writes what was asked for, and says where it lies. `asked` are the command's own parameters."""
    from quantplan.report.document import to_plain
    from quantplan.report.page import Subject

    subject = Subject(answer=to_plain(answer), grid=planned_grid(planned), base=base_command(asked), warnings=warnings)
    if html is not None:
        from quantplan.report.page import write_page

        write_page(html, subject)
        say(f"Page: {html}")
    if png is not None:
        _write_png(png, subject)


def _write_png(folder: Path, subject: Subject) -> None:
    from quantplan.report.page_pictures import write_charts

    for path in write_charts(folder, subject):
        say(f"Chart: {path}")


def planned_grid(planned: Planned) -> Grid:
    """What the planner says of every position of the page's sliders."""
    facts, request, model, nature = planned.facts, planned.request, planned.model, planned.nature
    own = planned.tools.own or own_preset(facts)
    quants = (own,) if own is not None else buildable(facts, tuple(dict.fromkeys((*request.quants, *PRESETS))))
    explorer = Explorer(
        tools=planned.tools, request=request, best=planned.choice, quality_of=model.quality_of,
        speeds=full_depth(model.figures, generates=not nature.embeds),
        suited=lambda one: suited(one, facts, nature),
    )  # fmt: skip
    kv_types = model.cache_types(tuple(dict.fromkeys((*request.kv_types, *MORE_CACHES))))
    return grid_of(explorer, axes_of(explorer, quants=quants, kv_types=kv_types))


def base_command(asked: dict[str, Any]) -> str:
    """The command that was typed, without what the sliders choose and without its outputs."""
    from quantplan.cli.plan_options import plan_options

    options = {one.name: one for one in plan_options(click.command()(lambda: None)).params}
    words = ["quantplan", "recommend", str(asked["model"])]
    if asked.get("machine"):
        words += ["--hardware", str(asked["machine"])]
    for name, option in options.items():
        value = asked.get(name)
        if name in _NOT_REPEATED or value in (None, (), option.default):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [option.opts[0], _word(str(name), one)]
    return shlex.join(words)


def _word(name: str, value: Any) -> str:
    if name == "margins":
        device, n_bytes = value
        return f"{device}={_size(n_bytes)}"
    return _size(value) if name in _SIZES else str(value)


def _size(n_bytes: int) -> str:
    return f"{n_bytes // MIB}MiB" if n_bytes % MIB == 0 else str(n_bytes)
