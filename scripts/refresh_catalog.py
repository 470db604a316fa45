"""Compares the catalog with the hub, and takes over what changed there.

    python scripts/refresh_catalog.py                      # says what it would ask; asks nothing
    python scripts/refresh_catalog.py --online [ID …]      # compares; exit 1 when something differs
    python scripts/refresh_catalog.py --online --write     # and writes data/catalog.json

Of each model it reads config.json and the headers of the weights (a few kB by ranges): the configuration, the trained
context, the parameters, the licence, the commit. A model whose configuration changed gets one of its own, with the
commit as its source; nothing is written of a model that cannot be read. HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from catalog import _ROPE_TABLES, _slim

from quantplan.errors import QuantplanError
from quantplan.model.hf_config import header_from_config
from quantplan.model.resolve import Catalog, CheckpointModel, resolve_model

TARGET = ROOT / "data" / "catalog.json"
_WITHIN = 0.01  # of the published count


@dataclass(frozen=True)
class Difference:
    """What the hub says otherwise."""

    what: str
    ours: object
    theirs: object


def ask(model: str) -> CheckpointModel:
    """The model as the hub has it now. Raises QuantplanError."""
    nothing: Catalog[Any] = Catalog(find=lambda name: None)
    found = resolve_model(f"{model}@main", catalog=nothing)
    if not isinstance(found, CheckpointModel):
        raise SystemExit(f"{model}: holds no checkpoint")
    return found


def compare(row: Mapping[str, Any], config: Mapping[str, Any], found: CheckpointModel) -> list[Difference]:
    """Context, parameters, licence, and whether the tensors of our configuration are those of the hub's."""
    differences = []
    ours, theirs = _facts(config), _facts(found.config)
    for what in ("context_length", "block_count"):
        if ours[what] != theirs[what]:
            differences.append(Difference(what, ours[what], theirs[what]))
    if ours["tensors"] != theirs["tensors"]:
        differences.append(Difference("tensors", len(ours["tensors"]), len(theirs["tensors"])))
    published = _published(found)
    if published and abs(published - (row["published"] or row["parameters"])) > _WITHIN * published:
        differences.append(Difference("published", row["published"], published))
    if found.licence and found.licence != row["licence"]:
        differences.append(Difference("licence", row["licence"], found.licence))
    return differences


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    header = header_from_config(config)
    by_end = {key.partition(".")[2]: value for key, value in header.metadata.items()}
    tensors = {(t.name, t.shape) for t in header.tensors if t.name not in _ROPE_TABLES}
    return {"context_length": by_end.get("context_length"), "block_count": by_end.get("block_count"),
            "tensors": tensors}  # fmt: skip


def _published(found: CheckpointModel) -> int | None:
    """Parameters that the repository's weights have, tower and all."""
    if not found.tensors:
        return None
    total = 0
    for tensor in found.tensors:
        n = 1
        for dim in tensor.shape:
            n *= dim
        total += n
    return total


def taken_over(table: dict[str, Any], row: dict[str, Any], found: CheckpointModel) -> None:
    """The row with what the hub says; its configuration becomes its own."""
    name = row["id"]
    others = [other for other in table["models"] if other["config"] == row["config"] and other is not row]
    if others and row["config"] == name:  # the others keep what they had
        table["configs"][f"{name} (before)"] = table["configs"][name]
        for other in others:
            other["config"] = f"{name} (before)"
    table["configs"][name] = _slim(dict(found.config))
    row["config"] = name
    row.pop("n_ctx", None)
    header = header_from_config(found.config)
    row["parameters"] = sum(t.n_elements for t in header.tensors if t.name not in _ROPE_TABLES)
    row["published"] = _published(found) or row["published"]
    row["licence"] = found.licence or row["licence"]
    row["source"] = {"config": f"https://huggingface.co/{name}/blob/{found.source.revision}/config.json",
                     "how": "read from the hub by scripts/refresh_catalog.py"}  # fmt: skip


def text_of(table: Mapping[str, Any]) -> str:
    """The file, a model a line."""
    told = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(
        table["configs"].items(), key=lambda pair: pair[0].lower()))  # fmt: skip
    lines = ",\n".join(f"    {json.dumps(row)}" for row in table["models"])
    source = json.dumps(table["source"])
    return f'{{\n  "source": {source},\n  "configs": {{\n{told}\n  }},\n  "models": [\n{lines}\n  ]\n}}\n'


def refresh(table: dict[str, Any], models: list[str]) -> tuple[int, int]:
    """How many differ and how many could not be read; `table` is changed."""
    rows = {row["id"]: row for row in table["models"]}
    n_differ = n_failed = 0
    for model in models:
        row = rows[model]
        config = dict(table["configs"][row["config"]])
        if row.get("n_ctx"):
            part = "text_config" if isinstance(config.get("text_config"), dict) else None
            place = {**config[part]} if part else config
            place["max_position_embeddings"] = row["n_ctx"]
            config = {**config, part: place} if part else place
        try:
            found = ask(model)
            differences = compare(row, config, found)
        except QuantplanError as error:
            print(f"{model}: {error}", file=sys.stderr)
            n_failed += 1
            continue
        for one in differences:
            print(f"{model}: {one.what} {one.ours} -> {one.theirs}")
        if differences:
            n_differ += 1
            taken_over(table, row, found)
    return n_differ, n_failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="ID")
    parser.add_argument("--online", action="store_true", help="ask the hub")
    parser.add_argument("--write", action="store_true", help="write what changed")
    parser.add_argument("--catalog", type=Path, default=TARGET)
    args = parser.parse_args()
    table = json.loads(args.catalog.read_text(encoding="utf-8"))
    known = [row["id"] for row in table["models"]]
    unknown = [model for model in args.models if model not in known]
    if unknown:
        print(f"not in the catalog: {', '.join(unknown)}", file=sys.stderr)
        return 2
    models = args.models or known
    if not args.online:
        print(f"offline: would ask the hub about {len(models)} models; --online does")
        return 0
    n_differ, n_failed = refresh(table, models)
    print(f"{len(models)} models: {n_differ} differ, {n_failed} could not be read")
    if args.write and n_differ:
        args.catalog.write_text(text_of(table), encoding="utf-8")
        return 0
    return 1 if n_differ or n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
