"""The models that quantplan knows without a network: configurations that ship with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quantplan.places import data_file

BUNDLED = "quantplan-tiny"  # data/bundled/quantplan-tiny: a Hugging Face folder with weights, for trying things out


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model. `parameters` as published; `config` as transformers 5 writes it, without what is at its default."""

    id: str  # the hub's, or the name of the bundled model
    name: str
    aliases: tuple[str, ...]
    parameters: int | None
    config: Mapping[str, object]
    licence: str | None = None
    note: str | None = None  # how the hub's own files differ from the configuration
    only_presets: tuple[str, ...] = ()  # what can be built of the hub's files, where that is not every preset
    folder: Path | None = None  # where the whole model ships with quantplan


@cache
def entries() -> tuple[CatalogEntry, ...]:
    """All models, by id."""
    table = json.loads(data_file("catalog.json").read_text(encoding="utf-8"))
    known = tuple(
        CatalogEntry(
            id=row["id"],
            name=row["name"],
            aliases=tuple(row["aliases"]),
            parameters=row["parameters"],
            config=row["config"],
            licence=row["licence"],
            note=row.get("note"),
            only_presets=tuple(row.get("only_presets", ())),
        )
        for row in table["models"]
    )
    return (*known, *_bundled())


def _bundled() -> tuple[CatalogEntry, ...]:
    folder = data_file("bundled", BUNDLED)
    config = folder / "config.json"
    if not config.is_file():
        return ()
    return (
        CatalogEntry(
            id=BUNDLED,
            name=BUNDLED,
            aliases=(f"quantplan/{BUNDLED}",),
            parameters=None,
            config=json.loads(config.read_text(encoding="utf-8")),
            licence="mit",
            folder=folder,
        ),
    )


@cache
def _by_name() -> Mapping[str, CatalogEntry]:
    """Ids win over aliases; an alias that two models share names neither."""
    shared: dict[str, list[CatalogEntry]] = {}
    for entry in entries():
        for alias in {name.lower() for name in (entry.name, *entry.aliases)}:
            shared.setdefault(alias, []).append(entry)
    found = {alias: owners[0] for alias, owners in shared.items() if len(owners) == 1}
    return {**found, **{entry.id.lower(): entry for entry in entries()}}


def find(name: str) -> CatalogEntry | None:
    """The model of that id, bare name or alias, in any case."""
    return _by_name().get(name.strip().lower())


def near(name: str, n: int = 3) -> tuple[str, ...]:
    """Ids like the name, the likest first."""
    from difflib import get_close_matches

    wanted = name.strip().lower()
    names = _by_name()
    inside = [alias for alias in names if wanted and wanted in alias]
    like = [*sorted(inside, key=len), *get_close_matches(wanted, names, n=4 * n, cutoff=0.6)]
    return tuple(dict.fromkeys(names[alias].id for alias in like))[:n]
