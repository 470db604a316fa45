"""`quantplan hardware`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts
    from quantplan.hardware.measure import Measured


@click.command("hardware", epilog="Example: quantplan hardware --measure --save my-server")
@click.argument("machine", required=False)
@click.option("--measure", is_flag=True, help="Measure RAM, disk and GPU bandwidth (a few seconds each) and keep them.")
@click.option("--save", metavar="NAME", help="Keep this machine as a profile for --hardware NAME.")
@click.option("--models", type=click.Path(path_type=Path), help="The folder whose disk counts (default: this one).")
@json_option
def command(machine: str | None, measure: bool, save: str | None, models: Path | None, as_json: bool) -> None:
    """What this machine is: GPUs, RAM, CPU and disk, cut to the limits that hold for you. With MACHINE, what a name
    such as rtx4070, 2x3090+64GB, g5.2xlarge or my-box.toml stands for."""
    from quantplan.hardware import measure as measuring
    from quantplan.hardware.profiles import save_profile
    from quantplan.report.hardware import describe_host

    host, measured = _named(machine, measure) if machine else _this_machine(models, measure)
    if save:
        say(f"saved: {save_profile(measuring.with_measured(host, measured), save)}")
    shown = measuring.with_measured(host, measured)
    data = {**shown.to_json(), "measured": measured}
    emit("hardware", data, as_json=as_json, text=describe_host(shown, measured), warnings=host.warnings)


def _named(machine: str, measure: bool) -> tuple[HostFacts, tuple[Measured, ...]]:
    from quantplan.hardware.profiles import load_profile

    if measure:
        raise click.UsageError("only the machine you sit at can be measured")
    return load_profile(machine), ()


def _this_machine(models: Path | None, measure: bool) -> tuple[HostFacts, tuple[Measured, ...]]:
    from quantplan.hardware import measure as measuring
    from quantplan.hardware.host import host_for

    host = host_for(None, models_folder=models)
    if measure:
        from quantplan.hardware.measure_all import measure_all

        measuring.keep_measured(host, measure_all(host, models or Path.cwd(), say=say))
    return host, measuring.read_measured(host)
