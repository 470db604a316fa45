"""`quantplan fleet`: run, check, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.fleet_export import command as export
from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.cli.fleet_plan import FleetPlan
    from quantplan.pipeline.fleet_file import Fleet
    from quantplan.pipeline.fleet_run import EntryEnd

_FILE = click.argument("buildfile", type=click.Path(path_type=Path, dir_okay=False))
_JOBS = click.option("--jobs", type=click.IntRange(1, 64), help="Builds side by side, instead of the file's.")
_LLAMA = click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")


@click.group("fleet", epilog="Example: quantplan fleet run fleet.toml --jobs 2")
def command() -> None:
    """Build many models and presets from one file (TOML or YAML): models x presets x gates, as a matrix or one by one.

    docs/fleet.md has every key of the file.
    """


@command.command("run", epilog="Example: quantplan fleet run fleet.toml --jobs 2")
@_FILE
@_JOBS
@click.option("--only", multiple=True, metavar="ID", help="Only this artifact (<name>-<QUANT>) and what it needs.")
@click.option("--explain", is_flag=True, help="Say of every build what it takes, and what runs beside what.")
@click.option("--dry-run", is_flag=True, help="The same as `fleet check`.")
@_LLAMA
@json_option
def run(
    buildfile: Path, jobs: int | None, only: tuple[str, ...], explain: bool, dry_run: bool, llama: Path | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Make everything that BUILDFILE asks for, a bounded number of builds side by side, within its disk and memory.

    One model is downloaded and converted once for all its presets. Others go on when one fails. Broken off at any
    moment, the same command goes on. Exit status 0: all passed; 1: one could not be made; 4: one failed its gate;
    5: inconclusive.
    """
    from quantplan.cli.fleet_run import run_fleet

    fleet, plan = _look(buildfile, jobs, only, llama)
    if explain:
        for line in _plan_text(fleet, plan, jobs).splitlines():
            say(line)
    if dry_run:
        return _checked(fleet, plan, jobs, as_json=as_json)
    ends = run_fleet(fleet, plan, jobs=jobs or fleet.jobs, llama=llama)
    status = _status(ends)
    data = {"verdict": {0: "pass", 4: "fail", 5: "inconclusive"}.get(status, "error"), "artifacts": list(ends)}
    emit("fleet", data, as_json=as_json, text=_table(ends), ok=status == 0)
    return status


@command.command("check", epilog="Example: quantplan fleet check fleet.toml")
@_FILE
@_JOBS
@_LLAMA
@json_option
def check(buildfile: Path, jobs: int | None, llama: Path | None, as_json: bool) -> int:
    """Say what would be built, what is in the way, and what it takes of disk and memory; build nothing."""
    fleet, plan = _look(buildfile, jobs, (), llama)
    return _checked(fleet, plan, jobs, as_json=as_json)


def _look(buildfile: Path, jobs: int | None, only: tuple[str, ...], llama: Path | None) -> tuple[Fleet, FleetPlan]:
    from quantplan.cli.fleet_plan import plan_fleet
    from quantplan.pipeline.fleet_file import read_fleet, selected

    fleet = selected(read_fleet(buildfile), only)
    plan = plan_fleet(fleet, jobs=jobs or fleet.jobs, llama=llama)
    for warning in plan.warnings:
        say(f"Warning: {warning}")
    return fleet, plan


def _checked(fleet: Fleet, plan: FleetPlan, jobs: int | None, *, as_json: bool) -> int:
    units = [
        {"name": need.unit.name, "model": need.unit.model, "quants": need.unit.quants, "stage": need.unit.stage,
         "needs": need.unit.needs, "disk": need.mode, "peak_bytes": need.peak_bytes,
         "memory_bytes": need.memory_bytes}
        for need in plan.needs
    ]  # fmt: skip
    data = {
        "jobs": jobs or fleet.jobs, "disk_bytes": plan.disk_bytes, "memory_bytes": plan.memory_bytes,
        "max_disk_bytes": plan.budget.disk_bytes, "max_memory_bytes": plan.budget.memory_bytes, "builds": units,
    }  # fmt: skip
    emit("fleet-check", data, as_json=as_json, text=_plan_text(fleet, plan, jobs))
    return 0


def _plan_text(fleet: Fleet, plan: FleetPlan, jobs: int | None) -> str:
    from quantplan.units import format_size

    memory = format_size(plan.memory_bytes) if plan.memory_bytes is not None else "not known"
    lines = [
        f"{fleet.path}: {len(fleet.entries)} artifact(s) in {len(plan.needs)} build(s), {jobs or fleet.jobs} at once",
        f"  disk    {format_size(plan.disk_bytes)} at most, {format_size(plan.budget.disk_bytes)} allowed",
        f"  memory  {memory} at most, {format_size(plan.budget.memory_bytes)} allowed",
    ]
    for need in plan.needs:
        one = need.unit
        after = f", after {', '.join(one.needs)}" if one.needs else ""
        lines.append(f"  {one.name:<28} {' '.join(one.quants)}: {format_size(need.peak_bytes)} {need.mode}{after}")
    return "\n".join(lines)


def _status(ends: tuple[EntryEnd, ...]) -> int:
    """1 where something could not be made, then 4, then 5."""
    verdicts = {end.verdict.value for end in ends if end.verdict is not None}
    if any(end.error for end in ends) or verdicts & {"error"}:
        return 1
    return 4 if "fail" in verdicts else 5 if verdicts - {"pass"} else 0


def _table(ends: tuple[EntryEnd, ...]) -> str:
    from quantplan.units import format_size

    width = max((len(end.id) for end in ends), default=0)
    lines = []
    for end in ends:
        size = format_size(end.bytes) if end.bytes is not None else "–"
        verdict = end.verdict.value if end.verdict and not end.error else "ERROR"
        lines.append(
            f"{end.id:<{width}}  {verdict:<12} {size:>10}  {' '.join((end.error or end.reason).split())[:200]}"
        )
    good = sum(end.good for end in ends)
    return "\n".join([*lines, f"{good} of {len(ends)} passed"])


command.add_command(export)
