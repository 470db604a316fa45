"""From a build file to units that nothing stands in the way of: every model looked at, disk and memory planned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import errors
from quantplan.pipeline.fleet_budget import OWN_MEMORY_BYTES, Budget, UnitNeed, memory_at_once, most_at_once
from quantplan.pipeline.fleet_file import Fleet
from quantplan.pipeline.fleet_order import Unit, units_of

if TYPE_CHECKING:
    from quantplan.cli.build_request import Options, Planned
    from quantplan.pipeline.disk import DiskMode, DiskPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """Units with their needs, and what all of it takes at once."""

    needs: tuple[UnitNeed, ...]
    budget: Budget
    disk_bytes: int
    memory_bytes: int | None
    warnings: tuple[str, ...]


def plan_fleet(fleet: Fleet, *, jobs: int, llama: Path | None) -> FleetPlan:
    """Every check of every build. Raises FleetRefused with all that stands in the way; nothing is begun."""
    needs, warnings = [], []
    refusals: list[tuple[str, errors.QuantplanError]] = []
    ready: list[tuple[Unit, Planned]] = []
    for unit in units_of(fleet.entries):
        try:
            ready.append((unit, _planned(unit, fleet, llama)))
        except errors.QuantplanError as error:
            refusals.append((unit.name, error))
    refusals += _push_refusals(fleet)
    if refusals:
        raise errors.FleetRefused(path=fleet.path, refusals=refusals)
    budget = _budget(fleet, [planned for _, planned in ready])
    for unit, planned in ready:
        alone = sum(other.lane == unit.lane for other, _ in ready) == 1
        needs.append(_need(unit, planned, fleet, budget, alone=alone))
        warnings += [f"{unit.name}: {text}" for text in planned.request.warnings]
    _check_budget(fleet, needs, budget)
    return FleetPlan(
        needs=tuple(needs), budget=budget, disk_bytes=min(budget.disk_bytes, most_at_once(needs, jobs)),
        memory_bytes=memory_at_once(needs, jobs), warnings=tuple(dict.fromkeys(warnings)),
    )  # fmt: skip


def options_of(unit: Unit, fleet: Fleet, llama: Path | None) -> Options:
    """A unit as `quantplan build` would be asked for it."""
    from quantplan.cli.build_request import Allowed, Options

    own = unit.entries[0].options
    same = {one.name for one in fields(Options)} & {one.name for one in fields(own)}
    told = {name: getattr(own, name) for name in same if getattr(own, name) is not None}
    allowed = Allowed(code=own.trust_remote_code, pickle=own.allow_pickle)
    return Options(quants=unit.quants, output=fleet.output, llama=llama, allowed=allowed, threads=fleet.threads, **told)


def _planned(unit: Unit, fleet: Fleet, llama: Path | None) -> Planned:
    from quantplan.cli import build_request

    planned = build_request.planned(unit.model, options_of(unit, fleet, llama))
    name = planned.request.source.name
    if name != unit.lane:
        why = f"{unit.model} is now called {name}: name it so in the build file"
        raise errors.BadFleet(path=fleet.path, where=unit.name, why=why)
    return planned


def _push_refusals(fleet: Fleet) -> Iterator[tuple[str, errors.QuantplanError]]:
    """What keeps artifacts from being published afterwards, asked once a repository."""
    repos = {entry.push: entry.id for entry in fleet.entries if entry.push}
    if not repos:
        return
    from quantplan.model.hub import Hub
    from quantplan.model.hub_push import HubWriter
    from quantplan.pipeline.push import Push, Target

    writer, reader = HubWriter(), Hub()
    for repo, name in repos.items():
        try:
            Push(fleet.output / name, Target(repo=repo), reader=reader, writer=writer).writable()
        except errors.QuantplanError as error:
            yield name, error


def _budget(fleet: Fleet, ready: list[Planned]) -> Budget:
    """The file's limits, and what this machine has: what earlier runs left counts as free."""
    import shutil

    from quantplan.hardware.detect import detect_host

    there = next(path for path in (fleet.output, *fleet.output.absolute().parents) if path.exists())
    folders = {one.request.folder for one in ready} | {one.request.artifact_folder(q) for one in ready
                                                       for q in one.request.quants}  # fmt: skip
    folders |= {one.request.source.folder for one in ready if one.request.source_is_ours}
    made: dict[int, int] = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        made[path.stat().st_ino] = path.stat().st_size
    free, ram = shutil.disk_usage(there).free + sum(made.values()), detect_host().ram.available_bytes
    return Budget(
        disk_bytes=min(free, fleet.max_disk_bytes or free), memory_bytes=min(ram, fleet.max_memory_bytes or ram)
    )


def _need(unit: Unit, planned: Planned, fleet: Fleet, budget: Budget, *, alone: bool) -> UnitNeed:
    """What a build takes. What it leaves is cleaned only once no other build of the model is to come."""
    from quantplan.pipeline.build import file_names

    request = planned.request
    plan = _disk_plan(planned, fleet, budget)
    sizes = request.sizes
    finished = sum(sizes.of(quant) for quant in request.quants if quant != request.converted_as) if sizes else 0
    finished += (sizes.mmproj_bytes if request.mmproj else 0) if sizes else 0
    finished += sizes.converted_bytes if sizes and request.converted_as in request.quants else 0
    steps = planned.found.memory
    return UnitNeed(
        unit=unit, mode=plan.mode.value, peak_bytes=plan.peak_bytes,
        stays_bytes=plan.final_bytes if fleet.keep or not alone or sizes is None else finished + _RECORDS_BYTES,
        memory_bytes=max(step.need_bytes for step in steps) + OWN_MEMORY_BYTES if steps else None,
        work_folder=request.folder, made_files=file_names(request, plan),
        artifacts=tuple(fleet.output / entry.id for entry in unit.entries),
        source_folder=request.source.folder if request.source_is_ours else None,
    )  # fmt: skip


_RECORDS_BYTES = 1 << 20


def _disk_plan(planned: Planned, fleet: Fleet, budget: Budget) -> DiskPlan:
    """Fast where all of the budget would hold it, else tight; what is judged by gates needs the 16-bit file."""
    from quantplan.pipeline.build import rough_sizes
    from quantplan.pipeline.disk import DiskMode, disk_plan

    request = planned.request
    gated = any(entry.gates for entry in fleet.entries if entry.name == request.source.name)
    mode: DiskMode = DiskMode.FAST if gated else DiskMode(fleet.disk)
    return disk_plan(request.sizes or rough_sizes(request), request.work(), mode, free_bytes=budget.disk_bytes)


def _check_budget(fleet: Fleet, needs: list[UnitNeed], budget: Budget) -> None:
    """One after the other, all must fit. Raises FleetTooLarge."""
    at_least = most_at_once(needs, 1)
    if at_least > budget.disk_bytes:
        raise errors.FleetTooLarge(
            path=fleet.path, what="one build after the other", kind_of="disk", need_bytes=at_least,
            allowed_bytes=budget.disk_bytes,
        )  # fmt: skip
    for need in needs:
        if (need.memory_bytes or 0) > budget.memory_bytes:
            raise errors.FleetTooLarge(
                path=fleet.path, what=f"the build of {need.unit.name}", kind_of="memory",
                need_bytes=need.memory_bytes or 0, allowed_bytes=budget.memory_bytes,
            )  # fmt: skip
