"""The models that quantplan knows without a network: configurations that ship with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from quantplan.places import data_file

BUNDLED = "quantplan-tiny"  # data/bundled/quantplan-tiny: a Hugging Face folder with weights, for trying things out


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model. `parameters` are the language model's, `published` what its repository counts (`beside` says what of
    it is no weight of the language model in 16 bit); `config` as transformers 5 writes it, without what is at its
    default. `source` names where the figures are from, `uses` what its publisher says it is for."""

    id: str  # the hub's, or the name of the bundled model
    name: str
    aliases: tuple[str, ...]
    parameters: int | None
    config: Mapping[str, object]
    published: int | None = None
    beside: str | None = None
    licence: str | None = None
    released: str | None = None  # year and month
    uses: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()  # repositories with finished files
    vision_parameters: int | None = None  # of the tower that becomes a projector file
    pooling: str | None = None  # an embedding model's, where the configuration does not tell that it is one
    note: str | None = None  # how the hub's own files differ from the configuration
    only_presets: tuple[str, ...] = ()  # what can be built of the hub's files, where that is not every preset
    shape: str = ""  # models of one shape and context have the same tensors
    source: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None  # where the whole model ships with quantplan


@cache
def entries() -> tuple[CatalogEntry, ...]:
    """All models, by id."""
    table = json.loads(data_file("catalog.json").read_text(encoding="utf-8"))
    return (*(_entry(row, table["configs"]) for row in table["models"]), *_bundled())


def _entry(row: Mapping[str, Any], configs: Mapping[str, Mapping[str, object]]) -> CatalogEntry:
    return CatalogEntry(
        id=row["id"], name=row["name"], aliases=tuple(row["aliases"]), parameters=row["parameters"],
        published=row["published"], beside=row.get("beside"), licence=row["licence"], released=row["released"],
        uses=tuple(row["uses"]), gguf=tuple(row["gguf"]), vision_parameters=row.get("vision_parameters"),
        pooling=row.get("pooling"), note=row.get("note"), only_presets=tuple(row.get("only_presets", ())),
        config=_with_context(configs[row["config"]], row.get("n_ctx")),
        shape=f"{row['config']}@{row.get('n_ctx', '')}", source=row["source"],
    )  # fmt: skip


def _with_context(config: Mapping[str, object], n_ctx: int | None) -> Mapping[str, object]:
    """The configuration that several models share, with a model's own trained context."""
    if n_ctx is None:
        return config
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return {**config, "text_config": {**text, "max_position_embeddings": n_ctx}}
    return {**config, "max_position_embeddings": n_ctx}


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
            released="2026-11",
            uses=("chat",),
            shape=BUNDLED,
            source={"config": "data/bundled/quantplan-tiny", "how": "ships with quantplan"},
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
