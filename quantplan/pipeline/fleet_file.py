"""A build file: models, presets and gates as a matrix and as single builds. Read strictly, before anything is begun."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.errors import BadFleet
from quantplan.pipeline.fleet_keys import BUILD_KEYS, Fields, near_names
from quantplan.pipeline.fleet_options import BuildOptions, read_options

_TOP = ("output", "jobs", "threads", "max_disk", "max_memory", "disk", "keep", "defaults", "matrix", "builds")
_MATRIX = ("models", "quants", "gates", "include", "exclude")
MODES = ("auto", "fast", "tight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One artifact that is asked for. `needs` are ids of others that must be there and good before."""

    id: str  # <name>-<QUANT>: the artifact's folder
    model: str
    name: str  # of the model, without its owner
    quant: str
    options: BuildOptions
    gates: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    push: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A whole build file. None: not limited by the file."""

    path: Path
    output: Path
    jobs: int
    entries: tuple[Entry, ...]
    threads: int | None = None
    max_disk_bytes: int | None = None
    max_memory_bytes: int | None = None
    disk: str = "auto"
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One table of the file: one or more presets of a model, and what was said of them."""

    where: str
    label: str | None
    model: str
    quant: str
    told: Mapping[str, Any]


def read_fleet(path: Path) -> Fleet:
    """The file, checked against itself. Raises BadFleet with the place and the reason."""
    told = load(path)
    top = Fields(path, "", told, _TOP)
    defaults = Fields(path, "defaults", top.table("defaults"), BUILD_KEYS, without=("model", "quant", "quants", "name"))
    asked = [*_matrix(path, top.table("matrix"), defaults), *_builds(path, top.tables("builds"), defaults)]
    if not asked:
        raise BadFleet(path=path, where="", why="asks for no build: neither a matrix nor builds")
    entries = _linked(path, asked)
    disk = top.choice("disk", MODES) or "auto"
    if disk == "tight" and any(one.gates for one in entries):
        why = "tight deletes the 16-bit file that gates measure against"
        raise BadFleet(path=path, where="disk", why=why)
    return Fleet(
        path=path, output=path.parent / (top.text("output") or "artifacts"), entries=entries, disk=disk,
        jobs=top.number("jobs") or 1, threads=top.number("threads"), max_disk_bytes=top.size("max_disk"),
        max_memory_bytes=top.size("max_memory"), keep=top.flag("keep"),
    )  # fmt: skip


def selected(fleet: Fleet, only: Sequence[str]) -> Fleet:
    """The same with these artifacts alone, and what they need. Raises BadFleet for one that is not in the file."""
    if not only:
        return fleet
    found = {entry.id: entry for entry in fleet.entries}
    wanted, todo = set(), list(only)
    while todo:
        name = todo.pop()
        if name not in found:
            why = f"{name!r} is no artifact of this file"
            raise BadFleet(path=fleet.path, where="", why=why, near=near_names(name, found))
        if name not in wanted:
            wanted.add(name)
            todo += found[name].needs
    return replace(fleet, entries=tuple(entry for entry in fleet.entries if entry.id in wanted))


def load(path: Path) -> Mapping[str, Any]:
    """The tables of a TOML or YAML file. Raises BadFleet."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFleet(path=path, where="", why=error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise BadFleet(path=path, where="", why="is not UTF-8 text") from None
    told = _toml(path, text) if path.suffix.lower() == ".toml" else _yaml(path, text)
    if not isinstance(told, dict):
        raise BadFleet(path=path, where="", why="holds no tables")
    return told


def _toml(path: Path, text: str) -> object:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadFleet(path=path, where="", why=f"is no TOML: {error}") from None


def _yaml(path: Path, text: str) -> object:
    import yaml

    class Strict(yaml.SafeLoader):
        """Two keys of one name are an error: the first would be lost without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise BadFleet(path=path, where=f"line {node.start_mark.line + 1}", why=f"{twice!r} is there twice")
            return dict(super().construct_mapping(node, deep=deep))

    try:
        return yaml.load(text, Loader=Strict)
    except yaml.YAMLError as error:
        raise BadFleet(path=path, where="", why=f"is no YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise BadFleet(path=path, where="", why="is nested too deeply") from None


def _matrix(path: Path, told: Mapping[str, Any], defaults: Fields) -> Iterator[_Asked]:
    if not told:
        return
    matrix = Fields(path, "matrix", told, _MATRIX)
    models, quants = matrix.texts("models"), matrix.texts("quants")
    for key, found in (("models", models), ("quants", quants)):
        if not found and not matrix.tables("include"):
            raise BadFleet(path=path, where="matrix", why=f"names no {key}")
    gates = {"gates": list(matrix.texts("gates"))} if "gates" in told else {}
    excluded = [_exclusion(path, i, one, models, quants) for i, one in enumerate(matrix.tables("exclude"), 1)]
    for model in models:
        for quant in quants:
            if not any(model == (m or model) and quant == (q or quant) for m, q in excluded):
                yield _Asked(where="matrix", label=None, model=model, quant=quant, told={**defaults.told, **gates})
    for i, one in enumerate(matrix.tables("include"), 1):
        yield from _one_build(path, f"matrix.include[{i}]", one, {**defaults.told, **gates})


def _exclusion(
    path: Path, number: int, told: Mapping[str, Any], models: Sequence[str], quants: Sequence[str]
) -> tuple[str | None, str | None]:
    where = f"matrix.exclude[{number}]"
    one = Fields(path, where, told, ("model", "quant"))
    model, quant = one.text("model"), one.text("quant")
    if model is None and quant is None:
        raise BadFleet(path=path, where=where, why="names neither a model nor a quant")
    for value, known in ((model, models), (quant, quants)):
        if value is not None and value not in known:
            raise BadFleet(path=path, where=where, why=f"{value!r} is not in the matrix", near=near_names(value, known))
    return model, quant


def _builds(path: Path, told: Sequence[Mapping[str, Any]], defaults: Fields) -> Iterator[_Asked]:
    for i, one in enumerate(told, 1):
        yield from _one_build(path, f"builds[{i}]", one, defaults.told)


def _one_build(path: Path, where: str, told: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[_Asked]:
    one = Fields(path, where, told, BUILD_KEYS)
    model = one.text("model")
    if not model:
        raise BadFleet(path=path, where=where, why="names no model")
    quants = (*one.texts("quants"), *([one.text("quant") or ""] if "quant" in told else []))
    if not quants:
        raise BadFleet(path=path, where=where, why="names no quant")
    for quant in quants:
        yield _Asked(where=where, label=one.text("name"), model=model, quant=quant, told={**defaults, **told})


def _linked(path: Path, asked: Sequence[_Asked]) -> tuple[Entry, ...]:
    """Entries with their needs as ids; each artifact once, and no circle."""
    from quantplan.pipeline.fleet_order import check_circles

    found: dict[str, Entry] = {}
    labels: dict[str, list[str]] = {}
    for one in asked:
        entry = _entry(path, one)
        if entry.id in found:
            other = found[entry.id]
            same = "twice" if other.model == entry.model else f"of {other.model} and of {entry.model}"
            raise BadFleet(path=path, where=one.where, why=f"the artifact {entry.id} is asked for {same}")
        found[entry.id] = entry
        if one.label:
            labels.setdefault(one.label, []).append(entry.id)
    entries = tuple(_with_needs(path, entry, found, labels) for entry in found.values())
    check_circles(path, entries)
    return entries


def _entry(path: Path, one: _Asked) -> Entry:
    from quantplan.pipeline.fleet_options import checked_preset, model_and_name

    fields = Fields(path, one.where, one.told, BUILD_KEYS)
    model, name = model_and_name(path, one.where, one.model)
    quant = checked_preset(path, one.where, one.quant)
    return Entry(
        id=f"{name}-{quant}", model=model, name=name, quant=quant, options=read_options(fields, path.parent),
        gates=fields.policies("gates"), needs=fields.texts("needs"),
        push=(fields.text("push") or "").replace("{name}", name) or None,
    )  # fmt: skip


def _with_needs(path: Path, entry: Entry, found: Mapping[str, Entry], labels: Mapping[str, Sequence[str]]) -> Entry:
    needs: list[str] = []
    for name in entry.needs:
        if name not in found and name not in labels:
            known = (*labels, *found)
            where = f"{entry.id}.needs"
            raise BadFleet(path=path, where=where, why=f"{name!r} is no build of this file",
                           near=near_names(name, known))  # fmt: skip
        needs += labels.get(name, [name])
    return replace(entry, needs=tuple(dict.fromkeys(needs)))
