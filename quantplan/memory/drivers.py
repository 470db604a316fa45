"""What a GPU's driver takes beside the engine's buffers: data/driver_context.csv."""

from __future__ import annotations

import csv
from functools import cache

from quantplan.memory.estimate import DriverContext
from quantplan.places import data_file
from quantplan.units import MIB


@cache
def _table() -> tuple[tuple[str, DriverContext], ...]:
    with data_file("driver_context.csv").open(newline="", encoding="utf-8") as file:
        return tuple(
            (
                row["product"],
                DriverContext(
                    low_bytes=_bytes(row["low_mib"]),
                    high_bytes=_bytes(row["high_mib"]),
                    planned_bytes=_bytes(row["planned_mib"]),
                    source=row["source"],
                ),
            )
            for row in csv.DictReader(file)
        )


def _bytes(mib: str) -> int:
    whole, _, fraction = mib.partition(".")
    return int(whole + fraction) * MIB // int(10 ** len(fraction))


def driver_context(product: str) -> DriverContext:
    """The row of the longest product name that `product` starts with; else the range for any other card."""
    rows = [row for row in _table() if product.startswith(row[0])]
    return max(rows, key=lambda row: len(row[0]))[1] if rows else dict(_table())["*"]
