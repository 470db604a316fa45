"""What has been done in a work folder: run.json, one entry a finished step, keyed by the name of its output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry, StepEntry, write_atomically
from quantplan.pipeline.files import boot_id, hash_of, members, size_of

SCHEMA = "quantplan/run/2"
_LARGE_BYTES = 64 << 20  # a hash of so much is written down at once: it took long to make


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished step: what was run with which tool, and what came out."""

    entry: StepEntry
    tool_build: str
    output: FileEntry
    at: str  # UTC
    boot: str | None = None  # the file was not synced: it is to be trusted until the machine starts again

    @property
    def is_trusted(self) -> bool:
        """Whether the output's content can only be what was written."""
        return self.boot is None or self.boot == boot_id()


class Record:
    """run.json of one work folder. An unreadable one counts as empty: then everything runs again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hashes: dict[str, Any] = {}
        self._steps: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.get("schema") == SCHEMA:
                self._steps, self._hashes = dict(told["steps"]), dict(told["hashes"])
                self._values = dict(told["values"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def known(self, output: str) -> Done | None:
        """The last finished step that made a file of this name."""
        told = self._steps.get(output)
        try:
            return _done(told) if told else None
        except (KeyError, TypeError):
            return None

    def intact(self, path: Path, expected: FileEntry) -> bool:
        """Whether a file is there and still has that content."""
        return path.exists() and self.entry(path).sha256 == expected.sha256

    def add(self, done: Done) -> None:
        """Remembers a finished step, on disk before it returns."""
        self._steps[done.output.name] = asdict(done)
        self.write()

    def entry(self, path: Path, *, name: str | None = None) -> FileEntry:
        """Name, hash and size of a file or folder; hashed once as long as size, inode and times of change stay."""
        stamp, size = _stamp(path), size_of(path)
        kept = self._hashes.get(self._key(path))
        if not kept or kept["stamp"] != stamp:
            kept = {"stamp": stamp, "sha256": hash_of(path)}
            self._hashes[self._key(path)] = kept
            if size >= _LARGE_BYTES:
                self.write()
        return FileEntry(name=name or path.name, sha256=kept["sha256"], bytes=size)

    def linked(self, path: Path) -> None:
        """We changed the file's link count ourselves, not its content: its hash holds."""
        if kept := self._hashes.get(self._key(path)):
            kept["stamp"] = _stamp(path)

    def value(self, name: str, fingerprint: str) -> Any:
        """What was kept under a name for these inputs, or None."""
        kept = self._values.get(name)
        return kept["value"] if kept and kept["fingerprint"] == fingerprint else None

    def keep(self, name: str, fingerprint: str, value: Any) -> None:
        """Keeps a small value that was computed from files, on disk before it returns."""
        self._values[name] = {"fingerprint": fingerprint, "value": value}
        self.write()

    def write(self) -> None:
        """run.json, whole or not at all. Without a work folder (nothing is built yet) nothing is written."""
        if not self._path.parent.is_dir():
            return
        told = {"schema": SCHEMA, "steps": self._steps, "values": self._values, "hashes": self._hashes}
        write_atomically(self._path, json.dumps(told, indent=1))

    def _key(self, path: Path) -> str:
        """Files of the work folder by name: the folder may be moved."""
        return path.name if path.parent == self._path.parent else str(path)


def _stamp(path: Path) -> list[list[int]]:
    found = (member.stat() for member in members(path))
    return [[one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for one in found]


def _done(told: Mapping[str, Any]) -> Done:
    entry = dict(told["entry"])
    entry["argv"] = tuple(entry["argv"])
    entry["inputs"] = tuple(FileEntry(**one) for one in entry["inputs"])
    return Done(
        entry=StepEntry(**entry),
        tool_build=told["tool_build"],
        output=FileEntry(**told["output"]),
        at=told["at"],
        boot=told["boot"],
    )
