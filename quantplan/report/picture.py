"""Lines, dots and words on a page, as SVG by hand or as a PNG by matplotlib: one layout, two writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from quantplan.errors import ExtraMissing

INK = "#222222"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A path through points, in pixels from the upper left."""

    points: tuple[tuple[float, float], ...]
    colour: str = INK
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    x: float
    y: float
    colour: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Text at its baseline; anchor start, middle or end; `upright` reads from below to above."""

    x: float
    y: float
    text: str
    size: int = 12
    anchor: str = "start"
    upright: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A filled rectangle from its upper left; faint where it stands for what is not chosen."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    faint: bool = False


Shape = Line | Dot | Words | Box


def svg(shapes: Sequence[Shape], *, width: int, height: int, title: str) -> str:
    """The document; words have a white rim, so that a line behind them does not strike them out."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
    )
    parts = [head, f'<rect width="{width}" height="{height}" fill="white"/>', *map(_svg, shapes), "</svg>"]
    return "\n".join(parts) + "\n"


def _svg(shape: Shape) -> str:
    if isinstance(shape, Line):
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shape.points)
        dash = ' stroke-dasharray="4 3"' if shape.dashed else ""
        return f'<path d="{path}" fill="none" stroke="{shape.colour}"{dash}/>'
    if isinstance(shape, Dot):
        at = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}"'
        return f'<circle {at} r="4" fill="{shape.colour}"><title>{escape(shape.title)}</title></circle>'
    if isinstance(shape, Box):
        size = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
        faint = ' fill-opacity="0.35"' if shape.faint else ""
        return f'<rect {size} fill="{shape.colour}"{faint}/>'
    place = f'x="{shape.x:.1f}" y="{shape.y:.1f}"'
    if shape.upright:
        place = f'transform="translate({shape.x:.1f} {shape.y:.1f}) rotate(-90)"'
    return (
        f'<text {place} font-size="{shape.size}" fill="{INK}" text-anchor="{shape.anchor}" stroke="white" '
        f'stroke-width="3" paint-order="stroke">{escape(shape.text)}</text>'
    )


def write_png(path: Path, shapes: Sequence[Shape], *, width: int, height: int) -> None:
    """The same page at twice its pixels, whole or not at all. Raises ExtraMissing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ExtraMissing(package="matplotlib", extra="plot", what="a PNG") from None
    mpl.use("Agg")
    from matplotlib import patheffects
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(width / 100, height / 100))
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))
    page.axis("off")
    for order, shape in enumerate(shapes, 1):
        if isinstance(shape, Line):
            xs, ys = zip(*shape.points, strict=True)
            style = (0, (4, 3)) if shape.dashed else "-"
            page.plot(xs, ys, color=shape.colour, linewidth=0.8, linestyle=style, zorder=order)
        elif isinstance(shape, Dot):
            page.plot([shape.x], [shape.y], "o", color=shape.colour, markersize=6, zorder=order)
        elif isinstance(shape, Box):
            page.bar(
                shape.x, shape.height, shape.width, bottom=shape.y, align="edge", color=shape.colour, linewidth=0,
                alpha=0.45 if shape.faint else 1.0, zorder=order,
            )  # fmt: skip
        else:
            anchor = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            page.text(
                shape.x, shape.y, shape.text, fontsize=0.72 * shape.size, color=INK, ha=anchor, va="baseline",
                rotation=90 if shape.upright else 0, rotation_mode="anchor", parse_math=False, zorder=order,
                path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=200, format="png")
    plt.close(figure)
    partial.replace(path)
