"""The charts of a plan as PNG files, drawn from the same grid as the page's, at the plan's own position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.memory.estimate import HOST
from quantplan.planner.grid import Cell, Grid
from quantplan.planner.request import Capacity
from quantplan.report.pareto_plot import round_step
from quantplan.report.picture import Box, Dot, Line, Shape, Words, write_png
from quantplan.units import GIB, MIB, format_mib

if TYPE_CHECKING:
    from quantplan.report.page import Subject

WIDTH, LEFT, RIGHT, TOP, PANEL = 760, 84, 24, 52, 200
PARTS = (("weights", "#3a74ad"), ("KV cache", "#cf7f1d"), ("compute", "#2b937e"), ("output", "#8c5fae"),
         ("driver", "#737d89"))  # fmt: skip
ROOM, GRID, LIMIT, DOT, OUT = "#eceff2", "#e4e4e4", "#b3261e", "#3a74ad", "#b3261e"
_BAR, _ROW = 26, 62


def write_charts(folder: Path, subject: Subject) -> tuple[Path, ...]:
    """memory.png, context.png and presets.png; returns where they lie. Raises ExtraMissing without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{subject.answer['model']['id']}, {subject.answer['plan']['quant']}"
    drawn = {"memory": memory_chart, "context": context_chart, "presets": presets_chart}
    paths = []
    for name, chart in drawn.items():
        shapes, height = chart(subject.grid, title)
        write_png(folder / f"{name}.png", shapes, width=WIDTH, height=height)
        paths.append(folder / f"{name}.png")
    return tuple(paths)


def cell_at(grid: Grid, at: Sequence[int]) -> Cell | None:
    """The cell of four indices: preset, cache, slots, context."""
    axes, index = grid.axes, 0
    for values, i in zip((axes.quants, axes.kv_types, axes.n_parallels, axes.contexts), at, strict=True):
        index = index * len(values) + i
    return grid.cells[index]


def memory_chart(grid: Grid, title: str) -> tuple[list[Shape], int]:
    """A bar of each device by part, with the limit."""
    cell = cell_at(grid, grid.plan_at)
    assert cell is not None
    capacities = {one.name: one for one in grid.capacities}
    shapes: list[Shape] = [Words(x=24, y=26, text=_short(f"{title}: memory by device"), size=15)]
    right, top = WIDTH - RIGHT, TOP + 20.0
    for need in cell.needs:
        has = capacities[need.name]
        scale = (right - 24) / max(has.capacity_bytes, need.total_bytes)
        told = f"{format_mib(need.total_bytes)} of {has.usable_bytes // MIB:,} MiB that may be used"
        shapes += [Words(x=24, y=top - 8, text=need.name), Words(x=right, y=top - 8, text=told, anchor="end"),
                   Box(x=24, y=top, width=right - 24, height=_BAR, colour=ROOM)]  # fmt: skip
        start = 24.0
        for n_bytes, (_, colour) in zip(_parts(cell, need.name), PARTS, strict=True):
            shapes += [Box(x=start, y=top, width=n_bytes * scale, height=_BAR, colour=colour)] if n_bytes else []
            start += n_bytes * scale
        at = 24 + has.usable_bytes * scale
        shapes.append(Line(points=((at, top - 4), (at, top + _BAR + 4)), colour=LIMIT, dashed=True))
        top += _ROW
    return [*shapes, *_legend(24, top)], int(top) + 24


def context_chart(grid: Grid, title: str) -> tuple[list[Shape], int]:
    """A column of each context on each device, the plan's own dark, what does not fit above the limit."""
    names = [capacity for capacity in grid.capacities if _matters(grid, capacity)]
    words = _short(f"{title}: context against memory")
    shapes: list[Shape] = [Words(x=24, y=26, text=words, size=15)]
    for i, capacity in enumerate(names):
        shapes += _context_panel(grid, capacity, top=TOP + 20 + i * PANEL)
    bottom = TOP + 20 + len(names) * PANEL
    middle = (LEFT + WIDTH - RIGHT) / 2
    shapes.append(Words(x=middle, y=bottom + 2, text="tokens of context a slot; x: does not fit", anchor="middle"))
    return [*shapes, *_legend(24, bottom + 26)], bottom + 44


def _context_panel(grid: Grid, capacity: Capacity, *, top: float) -> list[Shape]:
    cells = [cell_at(grid, (*grid.plan_at[:3], i)) for i in range(len(grid.axes.contexts))]
    floor, step = top + PANEL - 50, (WIDTH - RIGHT - LEFT) / len(cells)
    limit = capacity.usable_bytes
    most = min(max(limit * 1.06, *(sum(_parts(cell, capacity.name)) for cell in cells)), limit * 1.3)

    def y(n_bytes: float) -> float:
        return floor - min(n_bytes, most) / most * (floor - top)

    shapes = [*_scale(most, y), Words(x=LEFT, y=top - 6, text=f"{capacity.name}, limit {limit // MIB:,} MiB")]
    for i, (cell, n_ctx) in enumerate(zip(cells, grid.axes.contexts, strict=True)):
        x, base = LEFT + (i + 0.14) * step, 0.0
        for n_bytes, (_, colour) in zip(_parts(cell, capacity.name), PARTS, strict=True):
            height = y(base) - y(base + n_bytes)
            base += n_bytes
            if height > 0:
                shapes.append(Box(x=x, y=y(base), width=0.72 * step, height=height, colour=colour,
                                  faint=i != grid.plan_at[3]))  # fmt: skip
        bad = " x" if cell is None or cell.lacks else ""
        shapes.append(Words(x=x + 0.36 * step, y=floor + 16, text=f"{n_ctx:,}{bad}", size=11, anchor="middle"))
    return [*shapes, Line(points=((LEFT, y(limit)), (WIDTH - RIGHT, y(limit))), colour=LIMIT, dashed=True)]


def presets_chart(grid: Grid, title: str) -> tuple[list[Shape], int]:
    """Every preset at the plan's context, cache and slots: size against damage, and against speed."""
    cells = [cell_at(grid, (i, *grid.plan_at[1:])) for i in range(len(grid.presets))]
    damage = [(p.quality.kld_mean if p.quality else None) for p in grid.presets]
    speeds = [(cell.decode or cell.prefill) if cell else None for cell in cells]
    speed = [figure.value if figure else None for figure in speeds]
    fits = [cell is not None and not cell.lacks for cell in cells]
    shapes: list[Shape] = [
        Words(x=24, y=26, text=_short(f"{title.rpartition(', ')[0]}: size against quality and speed"), size=15)
    ]
    what = "decode" if any(cell and cell.decode for cell in cells) else "prompt"
    shapes += _scatter(grid, damage, fits, name="damage, mean KLD in nats", top=TOP + 20, log=True)
    shapes += _scatter(grid, speed, fits, name=f"{what}, tokens/s", top=TOP + 60 + PANEL, log=False)
    return shapes, TOP + 70 + 2 * PANEL


def _scatter(
    grid: Grid, values: Sequence[float | None], fits: Sequence[bool], *, name: str, top: float, log: bool
) -> list[Shape]:
    largest = max(preset.file_bytes for preset in grid.presets) * 1.15
    shown = [(p, value, ok) for p, value, ok in zip(grid.presets, values, fits, strict=True) if value and value > 0]
    floor = top + PANEL - 44
    shapes: list[Shape] = [Words(x=LEFT, y=top - 6, text=name)]
    if not shown:
        return [*shapes, Words(x=LEFT, y=top + 20, text="not known for this host or these presets")]
    ends = [math.log10(value) if log else value for _, value, _ in shown]
    low, high = (math.floor(min(ends)), math.ceil(max(ends) + 1e-9)) if log else (0.0, max(ends) * 1.1)

    def y(value: float) -> float:
        return floor - ((math.log10(value) if log else value) - low) / (high - low) * (floor - top)

    def x(n_bytes: float) -> float:
        return LEFT + n_bytes / largest * (WIDTH - RIGHT - LEFT)

    ticks = [10.0**power for power in range(int(low), int(high) + 1)] if log else _ticks(high)
    for tick in ticks:
        shapes += [Line(points=((LEFT, y(tick)), (WIDTH - RIGHT, y(tick))), colour=GRID),
                   Words(x=LEFT - 8, y=y(tick) + 4, text=f"{tick:g}", size=11, anchor="end")]  # fmt: skip
    unit, named = (GIB, "GiB") if largest >= 2 * GIB else (MIB, "MiB")
    for tick in _ticks(largest / unit):
        shapes.append(Words(x=x(tick * unit), y=floor + 16, text=f"{tick:g}", size=11, anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    shapes.append(
        Words(x=middle, y=floor + 34, text=f"weights in the file, {named}; (x): does not fit", anchor="middle")
    )
    for preset, value, ok in shown:
        at = (x(preset.file_bytes), y(value))
        text = preset.quant if ok else f"{preset.quant} (x)"
        shapes += [Dot(x=at[0], y=at[1], colour=DOT if ok else OUT, title=text),
                   Words(x=at[0], y=at[1] - 10, text=text, anchor="middle")]  # fmt: skip
    return shapes


def _scale(most: float, y: Callable[[float], float]) -> list[Shape]:
    unit, name = (GIB, "GiB") if most >= 2 * GIB else (MIB, "MiB")
    shapes: list[Shape] = []
    for tick in _ticks(most / unit):
        at = y(tick * unit)
        shapes += [Line(points=((LEFT, at), (WIDTH - RIGHT, at)), colour=GRID),
                   Words(x=LEFT - 8, y=at + 4, text=f"{tick:g} {name}", size=11, anchor="end")]  # fmt: skip
    return shapes


def _ticks(largest: float) -> list[float]:
    step = round_step(largest)
    return [i * step for i in range(int(largest / step) + 1)]


def _parts(cell: Cell | None, device: str) -> tuple[int, ...]:
    need = next((one for one in cell.needs if one.name == device), None) if cell else None
    if need is None:
        return (0,) * len(PARTS)
    return (need.model_bytes + need.extra_bytes, need.context_bytes, need.compute_bytes, need.output_bytes,
            need.overhead_bytes)  # fmt: skip


def _matters(grid: Grid, capacity: Capacity) -> bool:
    """Whether a device holds anything worth a panel at the plan's preset, cache and slots."""
    cells = [cell_at(grid, (*grid.plan_at[:3], i)) for i in range(len(grid.axes.contexts))]
    most = max(sum(_parts(cell, capacity.name)) for cell in cells)
    return most > (capacity.usable_bytes / 10 if capacity.name == HOST and len(grid.capacities) > 1 else 0)


def _legend(x: float, y: float) -> list[Shape]:
    shapes: list[Shape] = []
    for name, colour in PARTS:
        shapes += [Box(x=x, y=y - 10, width=12, height=12, colour=colour), Words(x=x + 18, y=y, text=name)]
        x += 40 + 7.5 * len(name)
    return [*shapes, Line(points=((x, y - 4), (x + 24, y - 4)), colour=LIMIT, dashed=True),
            Words(x=x + 30, y=y, text="what may be used")]  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= 88 else text[:87] + "…"
