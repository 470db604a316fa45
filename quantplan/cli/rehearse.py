"""`quantplan rehearse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.memory_options import memory_options
from quantplan.cli.options import emit, json_option

_UNMEASURED = "the time to load is not predicted: measure this disk first with: quantplan hardware --measure"


@click.command("rehearse", epilog="Example: quantplan rehearse Qwen/Qwen3-0.6B --quant Q4_K_M --ctx 4096")
@click.argument("model")
@memory_options
@click.option("--random", is_flag=True, help="Random data instead of zeros: takes the disk space of the model.")
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=256, show_default=True, help="Tokens to read.")
@click.option("--decode", "n_decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens to write.")
@click.option("--llama", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the tools.")
@json_option
def command(model: str, random: bool, n_prompt: int, n_decode: int, llama: Path | None, as_json: bool,
            **question: Any) -> None:  # fmt: skip
    """A dress rehearsal on this host: the server starts as planned on a model without weights, and memory, time to
    ready and speed are measured and compared with the plan. Nothing is downloaded; nothing is left behind.
    """
    from quantplan.hardware.detect import detect_host
    from quantplan.hardware.measure import read_measured
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.rehearsal.ask import estimate
    from quantplan.rehearsal.bench import keep_rehearsal
    from quantplan.rehearsal.rehearse import rehearse
    from quantplan.report.rehearsal_text import rehearsal_text

    tools, host = find_toolchain(explicit=llama), detect_host()
    answer = estimate(model, hardware=host, **question)
    disk = next((item.bytes_per_s for item in read_measured(host) if item.what == "disk"), None)
    found = rehearse(answer, tools, random=random, n_prompt=n_prompt, n_decode=n_decode, disk_bytes_per_s=disk)
    keep_rehearsal(answer, found, host)
    unmeasured = () if disk else (_UNMEASURED,)
    emit("rehearse", found, as_json=as_json, text=rehearsal_text(found), warnings=(*answer.warnings, *unmeasured))
