"""Runs a planned build file: the lock, the admission, the board, and what became of every artifact."""

from __future__ import annotations

import sys
from pathlib import Path

from quantplan.cli.fleet_board import FleetBoard
from quantplan.cli.fleet_plan import FleetPlan
from quantplan.cli.options import say
from quantplan.pipeline.fleet_budget import Admission
from quantplan.pipeline.fleet_commands import How
from quantplan.pipeline.fleet_file import Fleet
from quantplan.pipeline.fleet_run import EntryEnd, FleetRunner
from quantplan.pipeline.lock import locked

LOGS = ".fleet"


def run_fleet(fleet: Fleet, plan: FleetPlan, *, jobs: int, llama: Path | None) -> tuple[EntryEnd, ...]:
    """What became of every artifact, in the order of the file. One fleet at a time in an output folder."""
    from quantplan.hardware.detect import detect_host

    fleet.output.mkdir(parents=True, exist_ok=True)
    threads = fleet.threads or max(1, detect_host().cpu.n_threads // jobs)
    how = How(output=str(fleet.output), threads=threads, keep=fleet.keep, llama=str(llama) if llama else None)

    def waiting(pid: int | None) -> None:
        say(f"process {pid} builds in {fleet.output}: waiting for it")

    with locked(fleet.output / "fleet", waiting):
        runner = FleetRunner(
            plan.needs, how, jobs=jobs, admission=Admission(plan.needs, plan.budget),
            program=(sys.executable, "-m", "quantplan"), logs=fleet.output / LOGS, board=FleetBoard(),
        )  # fmt: skip
        ends = runner.run()
    for end in ends.values():
        if end.error:
            say(f"{end.id}: {end.error.splitlines()[0]} (log: {fleet.output / LOGS})")
    return tuple(ends[entry.id] for entry in fleet.entries)
