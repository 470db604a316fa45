"""`quantplan monitor`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import json_option

if TYPE_CHECKING:
    from quantplan.hardware.monitor import PlannedBytes


@click.command("monitor", epilog="Example: quantplan monitor --planned CUDA0=7800MiB --planned host=2GiB")
@click.option("--interval", type=click.FloatRange(0.05, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many samples (default: run until Ctrl-C).")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path, dir_okay=False), help="The plan to watch against.")
@click.option(
    "--planned", multiple=True, metavar="DEVICE=SIZE", help="One figure of a plan: CUDA0=7800MiB or host=2GiB."
)
@json_option
def command(
    interval: float, count: int | None, plan_file: Path | None, planned: tuple[str, ...], as_json: bool
) -> None:
    """Device memory, temperature, power, throttling, host memory, swap-in and disk wait while a model serves, against
    the plan's numbers. With --json one document a line."""
    from quantplan.hardware.detect import nvidia_traces
    from quantplan.hardware.monitor import watch
    from quantplan.hardware.nvml import Pynvml
    from quantplan.hardware.tree import HostTree
    from quantplan.report.document import render, success
    from quantplan.report.hardware import describe_sample

    nvml = Pynvml() if nvidia_traces(HostTree()) else None
    live = sys.stdout.isatty() and not as_json
    for sample in watch(
        nvml=nvml, env=os.environ, planned=_planned(plan_file, planned), interval_s=interval, count=count
    ):
        if as_json:
            click.echo(render(success("monitor", sample), one_line=True))
        else:
            click.echo(("\r\033[K" if live else "") + describe_sample(sample), nl=not live)
        sys.stdout.flush()
    if live:
        click.echo()


def _planned(plan_file: Path | None, pairs: tuple[str, ...]) -> PlannedBytes:
    """The plan's bytes a device; what is said of one device goes before the plan."""
    from quantplan.artifact.plan_file import read_plan
    from quantplan.hardware.monitor import PlannedBytes
    from quantplan.units import parse_size

    of_plan = read_plan(plan_file).memory if plan_file else ()
    sizes = {device.name.replace("Host", "host"): device.total_bytes for device in of_plan}
    for pair in pairs:
        name, _, size = pair.partition("=")
        try:
            sizes[name] = parse_size(size)
        except ValueError:
            raise click.BadParameter(f"{pair!r}: write DEVICE=SIZE, for example CUDA0=7800MiB") from None
    return PlannedBytes(host_bytes=sizes.pop("host", None), device_bytes=sizes)
