"""The command line in a process of its own, and what a refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, timeout=300,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    """One sentence, a hint, the exit status, nothing on stdout."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1, done.stderr
    for words in says:
        assert words in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Hint: ")], done.stderr
    assert "Traceback" not in done.stderr
