"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from quantplan.cli.printable import printable

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: one versioned document on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(function)


def table_options(function: F) -> F:
    """`--csv FILE` and `--parquet FILE`: the printed table's rows, whole and unrounded (`save_tables` writes them)."""
    file = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
    csv = click.option("--csv", "csv_file", type=file, metavar="FILE",
                       help="Write the table's rows as CSV; - prints them instead of the text.")  # fmt: skip
    parquet = click.option("--parquet", "parquet_file", type=file, metavar="FILE",
                           help="Write the table's rows as Parquet.")  # fmt: skip
    return csv(parquet(function))


def save_tables(rows: Sequence[Mapping[str, Any]], *, csv_file: Path | None, parquet_file: Path | None) -> str | None:
    """Writes what was asked for; returns the CSV where it is to be printed instead of the text."""
    from quantplan.report.table_files import csv_text, write_csv, write_parquet

    if parquet_file is not None:
        write_parquet(parquet_file, rows)
    if csv_file is not None and str(csv_file) == "-":
        return csv_text(rows).rstrip("\n")
    if csv_file is not None:
        write_csv(csv_file, rows)
    return None


def hardware_option(function: F) -> F:
    """`--hardware MACHINE`: plan for a machine you don't sit at (`quantplan.hardware.host.host_for`)."""
    text = "Plan for another machine: rtx4070, 2x3090+64GB, g5.2xlarge, a saved name or a profile file."
    return click.option("--hardware", "machine", metavar="MACHINE", help=text)(function)


def emit(
    command: str,
    data: object,
    *,
    as_json: bool,
    text: str,
    warnings: Sequence[str] = (),
    engine: object | None = None,
    ok: bool = True,
) -> None:
    """The result on stdout, as text or as JSON; warnings on stderr. Neither can steer a terminal."""
    for warning in warnings:
        click.echo(f"Warning: {printable(warning)}", err=True)
    if as_json:
        from quantplan.report.document import render, success

        text = render(success(command, data, warnings=warnings, engine=engine, ok=ok))
    click.echo(text if as_json else printable(text))


def say(text: str) -> None:
    """One line of progress, on stderr: stdout is the result only."""
    click.echo(printable(text), err=True)


def preset(given: str) -> str:
    """The preset's own name. Raises BadValue naming near ones."""
    from quantplan.errors import BadValue
    from quantplan.quant.presets import PRESETS

    name = given.upper()
    if name in PRESETS:
        return PRESETS[name].file_type  # an alias resolved
    import difflib

    near = difflib.get_close_matches(name, PRESETS, n=3)
    raise BadValue(what="preset", value=given, why=f"is unknown to llama-quantize; near names: {', '.join(near)}"
                   if near else "is unknown to llama-quantize")  # fmt: skip
