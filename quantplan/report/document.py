"""The one JSON document every `--json` prints, on success and on failure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from quantplan import __version__
from quantplan.errors import QuantplanError

DOCUMENT_VERSION = 1


def to_plain(value: Any) -> Any:
    """JSON's own types for our dataclasses, enums, paths and tuples. Floats that are not finite become None."""
    if hasattr(value, "to_json"):
        return to_plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return None
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    return value


def success(
    command: str, data: object, *, warnings: Sequence[str] = (), engine: object | None = None, ok: bool = True
) -> dict[str, Any]:
    """The document of a result. `ok` is False when a check failed: then data says what."""
    return {
        "schema": f"quantplan/{command}/{DOCUMENT_VERSION}",
        "ok": ok,
        "data": to_plain(data),
        "error": None,
        "warnings": list(warnings),
        "quantplan": __version__,
        "engine": to_plain(engine),
    }


def failure(command: str, error: QuantplanError, *, hint: str | None, engine: object | None = None) -> dict[str, Any]:
    """The document of an error: what, why, what to type next, and the exit code."""
    told = {"kind": error.kind, "message": str(error), "hint": hint, "exit_code": int(error.exit_code)}
    return {**success(command, None, engine=engine, ok=False), "error": told}


def render(document: Mapping[str, Any], *, one_line: bool = False) -> str:
    """The document as text: indented, or on one line for streams. Never NaN, never non-ASCII control bytes."""
    if one_line:
        return json.dumps(document, allow_nan=False, separators=(",", ":"))
    return json.dumps(document, allow_nan=False, indent=2)
