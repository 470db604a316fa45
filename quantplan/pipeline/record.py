"""What has been done in a work folder: run.json, one entry a finished step, keyed by its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry, StepEntry, sha256_of, write_atomically

SCHEMA = "quantplan/run/1"


class Record:
    """run.json of one work folder. An unreadable one counts as empty: then everything runs again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes: dict[str, Any] = {}
        self._steps: dict[str, Any] = {}
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.get("schema") == SCHEMA:
                self._steps, self._hashes = dict(told["steps"]), dict(told["hashes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def done(self, fingerprint: str, output: Path) -> StepEntry | None:
        """The finished entry of a step with this fingerprint when its output is still what it was."""
        known = self._steps.get(output.name)
        if not known or known["fingerprint"] != fingerprint or not output.is_file():
            return None
        if self.entry(output).sha256 != known["sha256"]:
            return None
        return _entry(known["entry"])

    def add(self, fingerprint: str, entry: StepEntry, output: Path) -> None:
        """Remembers a finished step, on disk before it returns."""
        found = self.entry(output)
        self._steps[output.name] = {"fingerprint": fingerprint, "sha256": found.sha256, "entry": asdict(entry)}
        self._write()

    def entry(self, path: Path, *, name: str | None = None) -> FileEntry:
        """A file's name, hash and size; hashed once as long as its size and time of change stay."""
        status = path.stat()
        key, stamp = str(path), [status.st_size, status.st_mtime_ns, status.st_ino]
        kept = self._hashes.get(key)
        if not kept or kept["stamp"] != stamp:
            kept = {"stamp": stamp, "sha256": sha256_of(path)}
            self._hashes[key] = kept
            self._write()
        return FileEntry(name=name or path.name, sha256=kept["sha256"], bytes=status.st_size)

    def _write(self) -> None:
        told = {"schema": SCHEMA, "steps": self._steps, "hashes": self._hashes}
        write_atomically(self._path, json.dumps(told, indent=1))


def _entry(told: Mapping[str, Any]) -> StepEntry:
    inputs = tuple(FileEntry(**entry) for entry in told["inputs"])
    return StepEntry(**{**told, "argv": tuple(told["argv"]), "inputs": inputs})
