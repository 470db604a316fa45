"""What of a build file is made together, and what after what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadFleet
from quantplan.pipeline.fleet_file import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Presets of one model with the same options: one conversion and one scoring of the reference serve them all.

    Units of one `lane` share a work folder and never run side by side. `stage` counts what must come before.
    """

    name: str
    lane: str
    entries: tuple[Entry, ...]
    needs: tuple[str, ...]
    stage: int

    @property
    def model(self) -> str:
        return self.entries[0].model

    @property
    def quants(self) -> tuple[str, ...]:
        return tuple(entry.quant for entry in self.entries)


def check_circles(path: Path, entries: Sequence[Entry]) -> None:
    """Raises BadFleet naming a circle of needs."""
    needs = {entry.id: entry.needs for entry in entries}
    done: set[str] = set()
    for start in needs:
        _walk(path, start, needs, (), done)


def _walk(path: Path, at: str, needs: Mapping[str, Sequence[str]], trail: tuple[str, ...], done: set[str]) -> None:
    if at in trail:
        circle = " -> ".join((*trail[trail.index(at) :], at))
        raise BadFleet(path=path, where=f"{at}.needs", why=f"a circle of needs: {circle}")
    if at in done:
        return
    for other in needs[at]:
        _walk(path, other, needs, (*trail, at), done)
    done.add(at)


def units_of(entries: Sequence[Entry]) -> tuple[Unit, ...]:
    """In the order of the file, stage by stage. Entries with the same needs make no circle of units."""
    stages = _stages(entries)
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        # Who waits for one preset only is not to wait for its neighbours: those stand in groups of their own stage.
        key = (entry.model, entry.options, entry.needs, entry.gates, entry.push, stages[entry.id])
        groups.setdefault(key, []).append(entry)
    made = sorted(groups.values(), key=lambda group: stages[group[0].id])
    names = dict(_names(made))
    return tuple(
        Unit(
            name=names[i], lane=group[0].name, entries=tuple(group), needs=group[0].needs,
            stage=stages[group[0].id],
        )
        for i, group in enumerate(made)
    )  # fmt: skip


def _names(groups: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, str]]:
    """The model's name; with a number where several units are of one model."""
    taken: set[str] = set()
    for i, group in enumerate(groups):
        name, n = group[0].name, 1
        while name in taken:
            n += 1
            name = f"{group[0].name}-{n}"
        taken.add(name)
        yield i, name


def _stages(entries: Sequence[Entry]) -> Mapping[str, int]:
    needs = {entry.id: entry.needs for entry in entries}
    stages: dict[str, int] = {}

    def stage(name: str) -> int:
        if name not in stages:
            stages[name] = 1 + max((stage(other) for other in needs[name]), default=-1)
        return stages[name]

    for name in needs:
        stage(name)
    return stages
