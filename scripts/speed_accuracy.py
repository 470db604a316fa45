"""How far the speed model is off, by group of measured rows: the tables of docs/speed.md, and the bars.

    python scripts/speed_accuracy.py [--bars] [--rows]

With --bars the exit status is 4 when a bar is not held. Which public rows are held to one: see speed_rows.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from speed_rows import TRUTH, Row, figure_of, h200_rows, more_rows, public_rows

from quantplan.rehearsal.calibration import shipped_calibration

COVERED = (0.75, 0.90)
MOST_HALF_WIDTH = 0.20


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows, and what their errors may be: (median, 90th percentile), None where nothing is demanded."""

    name: str
    rows: tuple[Row, ...]
    median: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Errors (predicted over measured less one) and ranges of a group's rows."""

    group: Group
    errors: np.ndarray
    covered: np.ndarray
    half_widths: np.ndarray

    @property
    def held(self) -> bool | None:
        """None where there is no bar."""
        if self.group.median is None:
            return None
        size = np.abs(self.errors)
        most = self.group.most
        return bool(np.median(size) <= self.group.median and (most is None or np.quantile(size, 0.9) <= most))


def groups(own: Path | None = None) -> tuple[Group, ...]:
    h200, more, public = tuple(h200_rows()), tuple(more_rows(own)), tuple(public_rows())

    def of(rows: Sequence[Row], kind: str, *also: Callable[[Row], bool]) -> tuple[Row, ...]:
        return tuple(row for row in rows if row.kind == kind and all(test(row) for test in also))

    def whole(row: Row) -> bool:
        return row.device == "H200" and row.n_active == 1

    return (
        Group(name="H200, all on the card (speed_h200.csv)", rows=of(h200, "decode", whole), median=0.08, most=0.20),
        Group(name="partial, experts on the host, CPU (speed_h200.csv)",
              rows=of(h200, "decode", lambda row: not whole(row)), median=0.15),
        Group(name="public, chosen by the rule", rows=of(public, "decode", lambda row: not row.why_not), median=0.12,
              most=0.30),
        Group(name="H200, all on the card (our own)", rows=of(more, "decode", whole), median=0.08, most=0.20),
        Group(name="partial, experts on the host, CPU (our own)",
              rows=of(more, "decode", lambda row: not whole(row) and row.n_active == 1), median=0.15),
        Group(name="several slots at once, H200 (our own)", rows=of(more, "decode", lambda row: row.n_active > 1)),
        Group(name="prefill, H200", rows=of((*h200, *more), "prefill", whole)),
        Group(name="prefill, partial and CPU", rows=of((*h200, *more), "prefill", lambda row: not whole(row))),
        *(Group(name=f"public, not barred: {why}", rows=of(public, "decode", lambda row, why=why: row.why_not == why))
          for why in sorted({row.why_not for row in public if row.kind == "decode" and row.why_not})),
        Group(name="public prefill, not barred", rows=of(public, "prefill")),
    )  # fmt: skip


def measure(group: Group) -> Accuracy:
    calibration = shipped_calibration()
    figures = [figure_of(row, calibration) for row in group.rows]
    measured = np.array([row.measured for row in group.rows])
    value, low, high = (np.array([getattr(f, key) for f in figures]) for key in ("value", "low", "high"))
    return Accuracy(
        group=group, errors=value / measured - 1, covered=(low <= measured) & (measured <= high),
        half_widths=(high - low) / 2 / value,
    )  # fmt: skip


def table(found: Sequence[Accuracy]) -> list[str]:
    lines = ["| rows | n | median error | 90 % within | bias | range covers | half-width | bar |", "|" + "---|" * 8]
    for one in found:
        size = np.abs(one.errors)
        bar = "" if one.group.median is None else f"median ≤ {one.group.median:.0%}"
        bar += "" if one.group.most is None else f", 90 % ≤ {one.group.most:.0%}"
        mark = {None: "", True: ": held", False: ": NOT held"}[one.held]
        lines.append(
            f"| {one.group.name} | {len(size)} | {np.median(size):.1%} | {np.quantile(size, 0.9):.1%} | "
            f"{np.median(one.errors):+.1%} | {one.covered.mean():.0%} | {np.median(one.half_widths):.0%} | "
            f"{bar}{mark} |"
        )
    return lines


def ranges(found: Sequence[Accuracy]) -> tuple[float, float]:
    """(share of the barred rows within their range, median half-width of the ranges)."""
    barred = [one for one in found if one.group.median is not None]
    covered = float(np.concatenate([one.covered for one in barred]).mean())
    return covered, float(np.median(np.concatenate([one.half_widths for one in barred])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", action="store_true", help="exit status 4 when a bar is not held")
    parser.add_argument("--truth", type=Path, help="folder of speed_h200.csv and measured_public.csv")
    parser.add_argument("--own", type=Path, help="a table like data/speed_measured.csv in its place")
    parser.add_argument("--rows", action="store_true", help="show every row")
    arguments = parser.parse_args()
    if arguments.truth:
        TRUTH[0] = arguments.truth
    found = [measure(group) for group in groups(arguments.own) if group.rows]
    print("\n".join(table(found)))
    covered, half = ranges(found)
    in_range = COVERED[0] <= covered <= COVERED[1] and half <= MOST_HALF_WIDTH
    print(f"\nRanges of the barred rows cover {covered:.0%} (75 to 90 %), median half-width {half:.0%} (at most 20 %): "
          f"{'held' if in_range else 'NOT held'}")  # fmt: skip
    for one in found if arguments.rows else ():
        print(f"\n{one.group.name}")
        for row, error in zip(one.group.rows, one.errors, strict=True):
            print(f"  {row.device:24} {row.backend:7} {row.model:34} {row.quant:9} {row.args:28} depth {row.n_depth:<7}"
                  f"{row.type_k:5} {row.measured:9.1f} {error:+7.1%}")  # fmt: skip
    held = in_range and all(one.held is not False for one in found)
    return 0 if held or not arguments.bars else 4


if __name__ == "__main__":
    sys.exit(main())
