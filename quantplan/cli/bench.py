"""`quantplan bench`."""

from __future__ import annotations

from pathlib import Path

import click

from quantplan.cli.options import emit, json_option, say


@click.command("bench", epilog="Example: quantplan bench Qwen/Qwen3-0.6B --quant Q4_K_M")
@click.argument("model", required=False)
@click.option(
    "--quant", metavar="PRESET", help="Preset of the weights; left out, Q4_K_M or as the model's file has them."
)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="CUDA0, Host … (repeatable; left out, all).")
@click.option("--depth", "n_depth", type=click.IntRange(0), default=0, show_default=True, help="Tokens of context.")
@click.option("--repetitions", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs of each test.")
@click.option(
    "--priority",
    type=click.Choice(["normal", "high", "realtime"]),
    default="normal",
    show_default=True,
    help="Of the engine's threads, for a host that is busy.",
)
@click.option("--llama", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the tools.")
@json_option
def command(model: str | None, quant: str | None, devices: tuple[str, ...], n_depth: int, repetitions: int,
            priority: str, llama: Path | None, as_json: bool) -> None:  # fmt: skip
    """How fast this host really is: llama-bench on MODEL, or on two models without weights. What it shows is kept and
    corrects every later prediction for this host. Nothing is downloaded.
    """
    from quantplan.hardware.host import host_for
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.rehearsal.bench import run_bench
    from quantplan.rehearsal.bench_jobs import plan_bench
    from quantplan.report.bench_text import bench_text

    tools, host = find_toolchain(explicit=llama), host_for(None)
    jobs = plan_bench(model, host, quant=quant, devices=devices)
    report = run_bench(jobs, host, tools, repetitions=repetitions, n_depth=n_depth, priority=priority, say=say)
    emit("bench", report, as_json=as_json, text=bench_text(report), engine=tools.engine("llama-bench"))
