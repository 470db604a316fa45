"""Rows of a table as CSV and Parquet: whole values, no units, unknown is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import write_atomically
from quantplan.errors import ExtraMissing


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header of every key in the order seen, then the rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The CSV as a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, csv_text(rows))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a Parquet file, whole or not at all. Raises ExtraMissing without pyarrow."""
    try:
        import pyarrow  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise ExtraMissing(package="pyarrow", extra="parquet", what="a Parquet file") from None
    import pandas as pd

    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pd.DataFrame(list(rows), columns=columns).convert_dtypes().to_parquet(partial, index=False)
    partial.replace(path)
