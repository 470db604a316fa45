"""Writes data/schemas of the documents whose data our own types describe: from the annotations of those types.

python scripts/write_schemas.py            writes them
python scripts/write_schemas.py --check    exit status 1 when one would change
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantplan.artifact.receipt import FileEntry
from quantplan.artifact.regressions import Regression
from quantplan.artifact.results import Finding, Verdict
from quantplan.hardware.finding import Finding as DoctorFinding
from quantplan.pipeline.inventory import Kind
from quantplan.rehearsal.bench import BenchReport
from quantplan.rehearsal.rehearse import Rehearsal
from quantplan.serving.lint.check import Linted

FOLDER = ROOT / "data/schemas"
ANY: Any = None
_ITEM = {"kind": Kind, "name": str, "path": Path, "bytes": int, "frees_bytes": int, "logits_bytes": int,
         "needed_by": tuple[str, ...], "may_go": str | None, "note": str | None}  # fmt: skip
_RESULT = {"model": str, "quant": str | None, "kind": str, "made_at": str, "recorded_at": str, "artifact": ANY,
           "result": dict[str, object]}  # fmt: skip

# What `data` of each document is: a type of ours, a mapping of names, or a list of one of them.
DOCUMENTS: Mapping[str, Any] = {
    "bench": BenchReport,
    "compare": {"source": ANY, "texts": ANY, "artifacts": [dict[str, object]]},
    "doctor": {"findings": [DoctorFinding], "checks": [str], "cuda": ANY, "engine": ANY, "settings": ANY},
    "gc": {"items": [_ITEM], "frees_bytes": int, "deleted": bool},
    "history": {"results": [_RESULT], "regressions": [Regression]},
    "lint": Linted,
    "list": {"items": [_ITEM]},
    "pull": {
        "folder": Path, "files": [FileEntry], "label": str, "chosen": str, "verdict": Verdict, "reason": str,
        "metrics": ANY, "tensor_bytes": int | None, "promised_bytes": int | None, "n_unlike": int | None,
        "findings": [Finding], "linked": ANY, "fresh": bool, "next": str | None,
    },
    "pull-held": {"models": [{"model": str, "quant": str | None, "bytes": int, "files": ANY}]},
    "rehearse": Rehearsal,
    "report": {"verdict": Verdict, "results": [{"name": str, "file": ANY, "result": dict[str, object]}]},
    "rm": {"deleted": [_ITEM], "freed_bytes": int},
    "sign": {"signature": Path},
    "verify": {
        "folder": Path, "model": FileEntry, "quant": str | None, "files": int, "bytes": int, "results": int,
        "signature": str, "findings": [Finding],
    },
}  # fmt: skip

_PLAIN = {str: "string", int: "integer", bool: "boolean", Path: "string"}


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type as `report.document.to_plain` writes it."""
    if kind is ANY or kind is object or kind is Any:
        return {}
    if isinstance(kind, Mapping):
        return _object({name: schema_of(one) for name, one in kind.items()})
    if isinstance(kind, list):
        return {"type": "array", "items": schema_of(kind[0])}
    if kind is float:
        return {"anyOf": [{"type": "number"}, {"type": "null"}]}  # what is not finite becomes null
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [one.value for one in kind]}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return _object({field.name: schema_of(hints[field.name]) for field in dataclasses.fields(kind)})
    return _generic(kind)


def _generic(kind: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        told: list[dict[str, Any]] = []
        for one in inner:
            schema = {"type": "null"} if one is type(None) else schema_of(one)
            told += [part for part in schema.get("anyOf", [schema]) if part not in told]
        return {} if {} in told else {"anyOf": told}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        size = len(inner)
        return {"type": "array", "prefixItems": [schema_of(one) for one in inner], "minItems": size, "maxItems": size}
    if origin in (tuple, list, set, frozenset, Sequence):
        return {"type": "array", "items": schema_of(inner[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    raise TypeError(f"no schema for {kind!r}")


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def document(name: str, kind: Any) -> dict[str, Any]:
    """The whole document: what all share, with the data of this one."""
    shared = json.loads((FOLDER / "document-1.schema.json").read_text(encoding="utf-8"))
    properties = {
        **shared["properties"],
        "schema": {"const": f"quantplan/{name}/1"},
        "data": {"anyOf": [schema_of(kind), {"type": "null"}]},
    }
    return {**shared, "$id": f"quantplan/{name}/1", "properties": properties}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check, stale = parser.parse_args().check, []
    for name, kind in DOCUMENTS.items():
        path, text = FOLDER / f"{name}-1.schema.json", json.dumps(document(name, kind), indent=1) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'none'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
