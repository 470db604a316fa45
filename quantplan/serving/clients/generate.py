"""A client's files: its sources as they are, and the plan's limits in the one place for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from quantplan.serving.clients.limits import ClientLimits

_HERE = Path(__file__).parent
_PYTHON_FOLDER = "quantplan_client"
_TYPESCRIPT_FILE = "quantplan-client.ts"
_NOT_IN_FETCH = frozenset({"connect_s"})  # it does not say when it has connected


class Language(Enum):
    """What a client is written in."""

    TYPESCRIPT = "typescript"
    PYTHON = "python"


def client_files(language: Language, limits: ClientLimits) -> Mapping[str, str]:
    """Text by file name. The same limits give the same bytes; of a key they know nothing."""
    if language is Language.TYPESCRIPT:
        source = (_HERE / "typescript" / _TYPESCRIPT_FILE).read_text(encoding="utf-8")
        return {_TYPESCRIPT_FILE: _filled(source, _typescript(limits), mark="//")}
    found = {}
    for path in sorted((_HERE / "python").iterdir()):
        if path.suffix in (".py", ".typed"):
            text = path.read_text(encoding="utf-8")
            text = _filled(text, _python(limits), mark="#") if path.name == "limits.py" else text
            found[f"{_PYTHON_FOLDER}/{path.name}"] = text
    return found


def _filled(source: str, block: str, *, mark: str) -> str:
    """The source with another block between its marks."""
    begin, end = f"{mark} plan:begin\n", f"{mark} plan:end\n"
    head, rest = source.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}{block}{end}{tail}"


def _python(limits: ClientLimits) -> str:
    """As `ruff format` writes it."""
    lines = []
    for name, value in asdict(limits).items():
        if isinstance(value, dict):
            told = f"{name.capitalize()}({', '.join(f'{key}={_literal(one)}' for key, one in value.items())})"
        else:
            told = _literal(value)
        lines.append(f"    {name}={told},\n")
    return f"LIMITS = Limits(\n{''.join(lines)})\n"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _typescript(limits: ClientLimits) -> str:
    """The same in TypeScript's words: lowerCamelCase, null, milliseconds where seconds are."""
    lines = []
    for name, value in asdict(limits).items():
        if isinstance(value, dict):
            parts = (f"{_camel(key)}: {_scaled(key, one)}" for key, one in value.items() if key not in _NOT_IN_FETCH)
            told = f"{{ {', '.join(parts)} }}"
        else:
            told = _scaled(name, value)
        lines.append(f"  {_camel(name)}: {told},\n")
    return f"export const LIMITS: Limits = {{\n{''.join(lines)}}};\n"


def _scaled(name: str, value: Any) -> str:
    told = round(value * 1000) if name.endswith("_s") and value is not None else value
    return json.dumps(told, ensure_ascii=False)


def _camel(name: str) -> str:
    name = f"{name[:-2]}_ms" if name.endswith("_s") else name
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
