"""How much disk and memory the units of a build file take, and which may run beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.pipeline.fleet_order import Unit
from quantplan.units import MIB, format_size

OWN_MEMORY_BYTES = 160 * MIB  # quantplan beside its tools: 102 MB measured (docs/build.md), with room


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitNeed:
    """One unit's use of the machine, by its own plan. Memory None: not known, it runs alone."""

    unit: Unit
    mode: str  # fast | tight
    peak_bytes: int
    stays_bytes: int  # what lies there when it has ended and was cleaned
    memory_bytes: int | None
    work_folder: Path
    made_files: frozenset[str]  # what of the work folder is counted in the peak
    artifacts: tuple[Path, ...]
    source_folder: Path | None  # downloaded for it, on the same disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What all that runs may take together."""

    disk_bytes: int
    memory_bytes: int


def most_at_once(needs: Sequence[UnitNeed], jobs: int) -> int:
    """Bytes on the disk that are never passed: what stays of all, and the highest peaks of as many lanes as run."""
    lanes: dict[str, int] = {}
    for need in needs:
        extra = need.peak_bytes - need.stays_bytes
        lanes[need.unit.lane] = max(lanes.get(need.unit.lane, 0), extra)
    return sum(need.stays_bytes for need in needs) + sum(sorted(lanes.values(), reverse=True)[:jobs])


def memory_at_once(needs: Sequence[UnitNeed], jobs: int) -> int | None:
    """Bytes of memory that are never passed; None where one is not known."""
    lanes: dict[str, int] = {}
    for need in needs:
        if need.memory_bytes is None:
            return None
        lanes[need.unit.lane] = max(lanes.get(need.unit.lane, 0), need.memory_bytes)
    return sum(sorted(lanes.values(), reverse=True)[:jobs])


class Admission:
    """Decides what may start now: planned peaks of what runs, and what really lies there of what does not."""

    def __init__(self, needs: Sequence[UnitNeed], budget: Budget) -> None:
        self._needs, self._budget = needs, budget
        self._running: dict[str, tuple[UnitNeed, int]] = {}

    def refusal(self, need: UnitNeed) -> str | None:
        """Why a unit may not start now; None when it may."""
        memory = [one.memory_bytes for one, _ in self._running.values()]
        if self._running and (need.memory_bytes is None or None in memory):
            return "how much memory it takes is not known: it runs alone"
        total = sum(one or 0 for one in memory) + (need.memory_bytes or 0)
        if total > self._budget.memory_bytes:
            return f"memory: {format_size(total)} together, {format_size(self._budget.memory_bytes)} allowed"
        disk = self._idle_bytes(need) + sum(bound for _, bound in self._running.values()) + self._bound(need)
        if disk > self._budget.disk_bytes:
            return f"disk: {format_size(disk)} together, {format_size(self._budget.disk_bytes)} allowed"
        return None

    def start(self, need: UnitNeed) -> None:
        self._running[need.unit.name] = (need, self._bound(need))

    def end(self, need: UnitNeed) -> None:
        del self._running[need.unit.name]

    def _bound(self, need: UnitNeed) -> int:
        """What its lane can come to: its peak, and what lies there that the peak does not count."""
        lane = _lane_files(self._needs, need.unit.lane)
        for inode in _counted(need):
            lane.pop(inode, None)
        return need.peak_bytes + sum(lane.values())

    def _idle_bytes(self, need: UnitNeed) -> int:
        active = {one.unit.lane for one, _ in self._running.values()} | {need.unit.lane}
        idle = {one.unit.lane for one in self._needs} - active
        return sum(sum(_lane_files(self._needs, lane).values()) for lane in idle)


def _lane_files(needs: Sequence[UnitNeed], lane: str) -> dict[int, int]:
    """Sizes by inode of all that a lane has on the disk: a hard link counts once."""
    found: dict[int, int] = {}
    for need in needs:
        if need.unit.lane == lane:
            for folder in (need.work_folder, *need.artifacts, *([need.source_folder] if need.source_folder else [])):
                found.update(_files(folder.rglob("*")))
    return found


def _counted(need: UnitNeed) -> dict[int, int]:
    made = [need.work_folder / name for name in need.made_files]
    inside = [path for one in made if one.is_dir() for path in one.iterdir()]
    own = [path for folder in need.artifacts for path in folder.rglob("*")]
    source = list(need.source_folder.rglob("*")) if need.source_folder else []
    return _files((*made, *inside, *own, *source))


def _files(paths: Iterable[Path]) -> dict[int, int]:
    found = {}
    for path in paths:
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found[status.st_ino] = status.st_size
        except OSError:
            continue  # it went meanwhile
    return found
