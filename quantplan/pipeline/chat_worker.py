"""The process that writes the chat text in a stranger's template: it can do nothing but compute, and not for long."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantplan.pipeline.scanning.jinja_worker import Refused, environment, limit
from quantplan.units import MIB

CPU_S, WALL_S, MORE_BYTES = 1.5, 20.0, 128 * MIB
MOST_CHARACTERS = 8 * 1024 * 1024  # of all conversations together: those that ship have some hundred thousand


def write(job: dict[str, Any]) -> dict[str, str]:
    """{"text"}, or {"error"} where the template does not take the conversations."""
    shown: list[str] = []
    try:
        compiled = environment().from_string(job["template"])
        for turns in job["talks"]:
            shown.append(_one(compiled, turns, bos_token=job["bos_token"], eos_token=job["eos_token"]))
            if sum(map(len, shown)) > MOST_CHARACTERS:
                return {"error": "it writes without end"}
    except Exception as error:  # whatever Python a template makes happen
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"text": "\n".join(shown)}


def _one(compiled: Any, turns: Sequence[dict[str, str]], **tokens: str) -> str:
    """One conversation; without its system turn where the template refuses that."""
    values = {**tokens, "add_generation_prompt": False, "tools": None}
    try:
        return str(compiled.render(messages=list(turns), **values))
    except Refused:
        if turns[0]["role"] != "system":
            raise
        return str(compiled.render(messages=list(turns[1:]), **values))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    limit(cpu_s=CPU_S, wall_s=WALL_S, more_bytes=MORE_BYTES)
    sys.stdout.write(json.dumps(write(job)) + "\n")
