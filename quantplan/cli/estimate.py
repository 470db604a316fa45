"""`quantplan estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.memory_options import memory_options
from quantplan.cli.options import emit, json_option
from quantplan.errors import ExitCode


@click.command("estimate", epilog="Example: quantplan estimate Qwen/Qwen3-8B --quant Q4_K_M --ctx 16384")
@click.argument("model")
@memory_options
@click.option("--hardware", metavar="HOST", help="Another machine: a card (RTX3090), 2x3090+64GB, a saved profile.")
@click.option("--as", "reserve", type=click.Choice(["server", "fit-params"]), default="server", show_default=True,
              help="Whose rule for the buffers.")  # fmt: skip
@click.option("--engine", is_flag=True, help="Ask the engine itself, with a model that has no weights.")
@click.option("--compare", is_flag=True, help="Show the arithmetic and the engine side by side.")
@click.option("--depth", "n_depth", type=click.IntRange(0), help="Context that the speed is of (all).")
@click.option("--prompt", "n_prompt", type=click.IntRange(1), help="Prompt whose first token is timed.")
@click.option("--llama", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the tools.")
@json_option
def command(model: str, hardware: str | None, engine: bool, compare: bool, llama: Path | None, as_json: bool,
            **question: Any) -> int:  # fmt: skip
    """What MODEL needs, by device and part in MiB, against what is free: does it fit, and if not, what to change; and
    how fast it decodes and reads a prompt, with a range and where that comes from.

    An option left out means what llama-server would do; the answer says what that was. Exit status 3 when it does
    not fit.
    """
    from quantplan.rehearsal.ask import ask_engine, estimate
    from quantplan.report.memory_table import memory_text

    answer = estimate(model, hardware=hardware, **question)
    if engine or compare:
        answer = ask_engine(answer, llama=llama)
    text = memory_text(answer, compare=compare)
    emit("estimate", answer, as_json=as_json, text=text, warnings=answer.warnings, ok=answer.fits)
    return int(ExitCode.OK if answer.fits else ExitCode.DOES_NOT_FIT)
