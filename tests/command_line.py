"""The command line in a process of its own, and what a refusal looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def hold_to_schema(told: Mapping[str, Any]) -> None:
    """Validates a document by its schema; some have none yet."""
    import jsonschema

    file = ROOT / "data/schemas" / f"{told['schema'].split('/')[1]}-1.schema.json"
    if file.exists():
        jsonschema.validate(told, json.loads(file.read_text()))


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "quantplan", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, timeout=300,
    )  # fmt: skip
    if "--json" in words and done.stdout.startswith("{\n"):
        hold_to_schema(json.loads(done.stdout))
    return done


def refused(done: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    """One sentence, a hint, the exit status, nothing on stdout."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1, done.stderr
    for words in says:
        assert words in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Hint: ")], done.stderr
    assert "Traceback" not in done.stderr
