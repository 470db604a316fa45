"""Predicted against measured, both in MiB on logarithmic axes: an SVG by hand, a PNG where matplotlib is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

Point = tuple[float, float, str]  # measured, predicted, group
WIDTH, HEIGHT, MARGIN = 720, 640, 70
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5aa8", "#b08900", "#4d4d4d", "#c2185b", "#00838f")


def write_plot(path: Path, points: Sequence[Point]) -> None:
    """Writes the picture. Raises SystemExit for a PNG without matplotlib, or another file type."""
    shown = [p for p in points if p[0] > 0 and p[1] > 0]
    if path.suffix == ".svg":
        path.write_text(_svg(shown), encoding="utf-8")
    elif path.suffix == ".png":
        _png(path, shown)
    else:
        raise SystemExit(f"{path}: a plot is .svg or .png")


def _png(path: Path, points: Sequence[Point]) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit(f"{path}: a PNG needs matplotlib (pip install matplotlib); .svg needs nothing") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 6.4))
    for group in sorted({p[2] for p in points}):
        own = [p for p in points if p[2] == group]
        axes.loglog([p[0] for p in own], [p[1] for p in own], ".", label=group, markersize=4)
    axes.axline((1, 1), slope=1, color="black", linewidth=0.7)
    axes.set(xlabel="measured, MiB", ylabel="predicted, MiB")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _svg(points: Sequence[Point]) -> str:
    values = [math.log10(v) for p in points for v in p[:2]] or [0.0, 1.0]
    low, high = math.floor(min(values)), max(math.ceil(max(values)), math.floor(min(values)) + 1)
    side = min(WIDTH, HEIGHT) - 2 * MARGIN

    def x(v: float) -> float:
        return MARGIN + (math.log10(v) - low) / (high - low) * side

    def y(v: float) -> float:
        return MARGIN + side - (math.log10(v) - low) / (high - low) * side

    groups = sorted({p[2] for p in points})
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">',
             '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for power in range(low, high + 1):
        at = 10.0**power
        parts.append(f'<path d="M{x(at):.1f} {MARGIN}V{MARGIN + side}M{MARGIN} {y(at):.1f}H{MARGIN + side}" '
                     f'stroke="#ddd"/><text x="{x(at):.1f}" y="{MARGIN + side + 18}" font-size="11" '
                     f'text-anchor="middle">{at:g}</text><text x="{MARGIN - 6}" y="{y(at) + 4:.1f}" font-size="11" '
                     f'text-anchor="end">{at:g}</text>')  # fmt: skip
    ends = 10.0**low, 10.0**high
    parts.append(f'<path d="M{x(ends[0]):.1f} {y(ends[0]):.1f}L{x(ends[1]):.1f} {y(ends[1]):.1f}" stroke="#999"/>')
    for index, group in enumerate(groups):
        colour = COLOURS[index % len(COLOURS)]
        dots = "".join(f'<circle cx="{x(p[0]):.1f}" cy="{y(p[1]):.1f}" r="2"/>' for p in points if p[2] == group)
        label = f'<text x="{MARGIN + 12}" y="{MARGIN + 18 + 15 * index}" font-size="11" fill="{colour}">{escape(group)}'
        parts.append(f'<g fill="{colour}" fill-opacity="0.6">{dots}</g>{label}</text>')
    parts.append(f'<text x="{MARGIN + side / 2}" y="{MARGIN + side + 40}" font-size="13" text-anchor="middle">'
                 f'measured, MiB</text><text transform="translate({MARGIN - 48} {MARGIN + side / 2}) rotate(-90)" '
                 'font-size="13" text-anchor="middle">predicted, MiB</text></svg>\n')  # fmt: skip
    return "\n".join(parts)
