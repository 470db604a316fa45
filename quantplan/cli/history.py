"""`quantplan history`."""

from __future__ import annotations

from pathlib import Path

import click

from quantplan.cli.options import emit, json_option, save_tables, table_options
from quantplan.errors import ExitCode


@click.command("history", epilog="Example: quantplan history Qwen/Qwen3-0.6B --csv results.csv")
@click.argument("model", required=False)
@click.option("--kind", metavar="KIND", help="Only results of this kind: gate, bench, load or scan.")
@click.option("--add", "folders", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="First record the artifact folders in this folder (repeatable).")  # fmt: skip
@click.option("--check", is_flag=True, help="Exit with status 4 when something became worse.")
@table_options
@json_option
def command(model: str | None, kind: str | None, folders: tuple[Path, ...], check: bool, csv_file: Path | None,
            parquet_file: Path | None, as_json: bool) -> int:  # fmt: skip
    """What was built and measured on this host: every result of MODEL (of all models without one), and what became
    worse since the last build that passed, beyond the noise of both measurements.

    MODEL is what a build, gate, bench or load recorded: org/name, or its last part.
    """
    from quantplan.artifact.history import entries, result_rows
    from quantplan.artifact.regressions import regressions
    from quantplan.report.history_text import history_data, history_text

    warnings = _add(folders)
    found = entries(model, kind=kind)
    worse = regressions(found)
    csv = save_tables(list(result_rows(found)), csv_file=csv_file, parquet_file=parquet_file)
    failed = check and bool(worse)
    emit("history", history_data(found, worse), as_json=as_json, text=csv or history_text(found, worse),
         warnings=warnings, ok=not failed)  # fmt: skip
    return int(ExitCode.CHECK_FAILED if failed else ExitCode.OK)


def _add(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """Records the artifact folders in these folders; what could not be recorded, once each."""
    from quantplan.artifact.history import record_artifact
    from quantplan.artifact.receipt import NAME

    found = [path.parent for folder in folders for path in sorted(folder.glob(f"**/{NAME}"))]
    return tuple(dict.fromkeys(warning for one in found if (warning := record_artifact(one)) is not None))
