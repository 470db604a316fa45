"""Divergence over size, with error bars and the Pareto front, as SVG, a page of HTML, or PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from quantplan.artifact.receipt import write_atomically
from quantplan.errors import BadValue
from quantplan.report.comparison import Compared, Comparison
from quantplan.report.picture import Dot, Line, Shape, Words, svg, write_png
from quantplan.units import GIB, MIB

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 480, 84, 40, 48, 64
FLOOR = HEIGHT - BOTTOM
FRONT, OFF, GRID, LEADER = "#1b6ca8", "#c8553d", "#e4e4e4", "#9a9a9a"
_LINE_PX, _CHARACTER_PX = 13, 6.8
_FORMATS = (".svg", ".html", ".png")


def write_plot(path: Path, found: Comparison) -> None:
    """The plot in the format that the file's name says. Raises BadValue for another one or where nothing was
    measured, ExtraMissing for a PNG without matplotlib."""
    kind = path.suffix.lower()
    if kind not in _FORMATS:
        raise BadValue(what="plot", value=str(path), why=f"is none of {', '.join(_FORMATS)}")
    if all(one.kld is None for one in found.artifacts):
        raise BadValue(what="plot", value=str(path), why="has nothing to show: no divergence was measured")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".png":
        write_png(path, layout(found), width=WIDTH, height=HEIGHT)
    elif kind == ".svg":
        write_atomically(path, pareto_svg(found))
    else:
        from quantplan.report.comparison_html import comparison_html

        write_atomically(path, comparison_html(found, pareto_svg(found)))


def pareto_svg(found: Comparison) -> str:
    """The picture as an SVG document."""
    return svg(layout(found), width=WIDTH, height=HEIGHT, title=_title(found))


def layout(found: Comparison) -> list[Shape]:
    """Grid, front, points with error bars, labels that do not cover each other."""
    shown = [one for one in found.artifacts if one.kld is not None]
    axes = _Axes(shown)
    points = [shape for one in shown for shape in _point(one, axes)]
    return [*_grid(axes, _title(found)), *_front(shown, axes), *points, *_labels(shown, axes)]


def _title(found: Comparison) -> str:
    return _shortened(f"{found.source}: divergence from 16 bit over size", 80)


def _shortened(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


class _Axes:
    """Size in GiB or MiB from 0; divergence over whole decades, where exactly 0 (16 bit itself) lies on the floor."""

    def __init__(self, shown: Sequence[Compared]) -> None:
        largest = max(one.bytes for one in shown)
        self.unit, self.unit_name = (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
        self.step = round_step(largest / self.unit)
        self.x_high = math.ceil(largest * 1.12 / self.unit / self.step) * self.step
        positive = [v for one in shown if one.kld for v in (one.kld.value, one.kld.low, one.kld.high) if v > 0]
        self.has_zero = any(one.kld and one.kld.value <= 0 for one in shown)
        self.y_low = math.floor(math.log10(min(positive, default=1.0)))
        self.y_high = max(math.ceil(math.log10(max(positive, default=1.0))), self.y_low + 1)
        if self.has_zero:
            self.y_low -= 1  # the floor is 0 then, and no power of ten

    def x(self, n_bytes: int) -> float:
        return LEFT + n_bytes / self.unit / self.x_high * (WIDTH - LEFT - RIGHT)

    def y(self, kld: float) -> float:
        """Pixels from the top; 0 and below is the floor."""
        if kld <= 0:
            return FLOOR
        at = min(max(math.log10(kld), self.y_low), self.y_high)
        return FLOOR - (at - self.y_low) / (self.y_high - self.y_low) * (FLOOR - TOP)

    def x_ticks(self) -> list[tuple[float, str]]:
        n = round(self.x_high / self.step)
        return [(self.x(int(i * self.step * self.unit)), f"{i * self.step:g}") for i in range(n + 1)]

    def y_ticks(self) -> list[tuple[float, str]]:
        powers = range(self.y_low + self.has_zero, self.y_high + 1)
        ticks = [(self.y(10.0**power), f"{10.0**power:g}") for power in powers]
        if len(powers) <= 3:  # few decades: 2 and 5 help
            ticks += [(self.y(m * 10.0**p), f"{m * 10.0**p:g}") for p in powers[:-1] for m in (2, 5)]
        return [*ticks, (FLOOR, "0")] if self.has_zero else ticks


def round_step(largest: float) -> float:
    """A round step that makes four to eight ticks."""
    raw = largest / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)


def _grid(axes: _Axes, title: str) -> list[Shape]:
    right = WIDTH - RIGHT
    shapes: list[Shape] = []
    for at, text in axes.x_ticks():
        shapes.append(Line(points=((at, TOP), (at, FLOOR)), colour=GRID))
        shapes.append(Words(x=at, y=FLOOR + 18, text=text, size=11, anchor="middle"))
    for at, text in axes.y_ticks():
        shapes.append(Line(points=((LEFT, at), (right, at)), colour=GRID))
        shapes.append(Words(x=LEFT - 8, y=at + 4, text=text, size=11, anchor="end"))
    under = f"size of the file, {axes.unit_name}"
    shapes.append(Words(x=LEFT, y=26, text=title, size=15))
    shapes.append(Words(x=(LEFT + right) / 2, y=HEIGHT - 20, text=under, size=13, anchor="middle"))
    middle = (TOP + FLOOR) / 2
    shapes.append(Words(x=22, y=middle, text="mean KLD, nats a token", size=13, anchor="middle", upright=True))
    return shapes


def _front(shown: Sequence[Compared], axes: _Axes) -> list[Shape]:
    """Steps: until the next size, no file is better than the last on the front."""
    front = [(axes.x(one.bytes), axes.y(one.kld.value)) for one in shown if one.pareto and one.kld]
    if len(front) < 2:
        return []
    points = [front[0]]
    for x, y in front[1:]:
        points += [(x, points[-1][1]), (x, y)]
    return [Line(points=tuple(points), colour=FRONT, dashed=True)]


def _point(one: Compared, axes: _Axes) -> list[Shape]:
    assert one.kld is not None
    x, y = axes.x(one.bytes), axes.y(one.kld.value)
    colour = FRONT if one.pareto else OFF
    shapes: list[Shape] = []
    if one.kld.se is not None:
        low, high = axes.y(one.kld.low), axes.y(one.kld.high)
        ends = [((x - 4, end), (x + 4, end)) for end in (low, high)]
        shapes = [Line(points=points, colour=colour) for points in (((x, low), (x, high)), *ends)]
    title = f"{one.name}: KLD {one.kld.value:.3g}, {one.bytes / axes.unit:.2f} {axes.unit_name}"
    return [*shapes, Dot(x=x, y=y, colour=colour, title=title)]


def _labels(shown: Sequence[Compared], axes: _Axes) -> list[Shape]:
    """Presets beside their points: above, below, or to the left where that is free; else higher, with a leader."""
    dots = [(axes.x(one.bytes), axes.y(one.kld.value)) for one in shown if one.kld]
    taken = [(x - 6, x + 6, y + 5) for x, y in dots]
    quants = [one.quant for one in shown]
    shapes: list[Shape] = []
    for one, (x, y) in sorted(zip(shown, dots, strict=True), key=lambda pair: pair[1][0]):
        text = _shortened(one.quant if quants.count(one.quant) == 1 else one.name, 34)
        width = _CHARACTER_PX * len(text)
        near = [(x + 7, y - 7), (x + 7, y + 15), (x - 7 - width, y + 15), (x - 7 - width, y - 7)]
        start, base = next((at for at in near if _free(*at, width, taken)), near[0])
        while not _free(start, base, width, taken) and base > TOP:
            base -= 3
        taken.append((start, start + width, base))
        if y - base > 2 * _LINE_PX:
            shapes.append(Line(points=((x, y - 5), (start + 2, base + 2)), colour=LEADER))
        shapes.append(Words(x=start, y=base, text=text))
    return shapes


def _free(start: float, base: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a label of that width fits on the page there and covers nothing."""
    if start < LEFT or start + width > WIDTH - 6 or base > FLOOR - 2:
        return False
    return not any(abs(base - b) < _LINE_PX and start < e and s < start + width for s, e, b in taken)
