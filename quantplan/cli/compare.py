"""`quantplan compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import emit, hardware_option, json_option, save_tables, table_options

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts


@click.command("compare", epilog="Example: quantplan compare artifacts/toy-Q4_K_M artifacts/toy-Q8_0 --plot p.html")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--ctx", "n_ctx", type=click.IntRange(1), help="Tokens of context that memory is calculated for.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw divergence over size: .svg, .html or .png (the extra plot).")  # fmt: skip
@hardware_option
@table_options
@json_option
def command(artifacts: tuple[Path, ...], n_ctx: int | None, plot: Path | None, machine: str | None,
            csv_file: Path | None, parquet_file: Path | None, as_json: bool) -> None:  # fmt: skip
    """ARTIFACTS of one source side by side: size, divergence with its error, speed where it was measured, and the
    memory that each needs on this host or another. What a smaller one makes pointless is marked.

    Artifacts of different sources are refused: their figures say nothing about each other.
    """
    from quantplan.artifact.store import find_artifact
    from quantplan.hardware.host import host_for
    from quantplan.memory.estimate import HOST
    from quantplan.report.comparison import compare, comparison_rows
    from quantplan.report.comparison_text import comparison_text
    from quantplan.report.pareto_plot import write_plot

    host = host_for(machine)
    devices = (*(gpu.name for gpu in host.gpus), HOST)
    found = compare([find_artifact(path) for path in artifacts], devices=devices, memory_of=_memory_on(host, n_ctx))
    rows = comparison_rows(found)
    csv = save_tables(rows, csv_file=csv_file, parquet_file=parquet_file)
    if plot is not None:
        write_plot(plot, found)
    data = {"source": found.source, "texts": found.texts, "artifacts": rows}
    emit("compare", data, as_json=as_json, text=csv or comparison_text(found), warnings=found.warnings)


def _memory_on(host: HostFacts, n_ctx: int | None) -> Callable[[Path], tuple[int, ...] | None]:
    from quantplan.errors import QuantplanError
    from quantplan.rehearsal.ask import estimate

    def memory_of(gguf: Path) -> tuple[int, ...] | None:
        try:
            answer = estimate(str(gguf), hardware=host, n_ctx=n_ctx)
        except QuantplanError:
            return None
        return tuple(device.total_bytes for device in answer.memory.devices)

    return memory_of
