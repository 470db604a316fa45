"""artifact.json: what a build made, from what, with what. Written once, never changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantplan.errors import BadArtifact, NoArtifact

SCHEMA = "quantplan/artifact/1"
NAME = "artifact.json"
MMPROJ_PREFIX = "mmproj-"  # as the converter names projectors


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file by name, content and size."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEntry:
    """One step of the build: argv with names relative to the work folder, inputs by hash."""

    name: str
    argv: tuple[str, ...]
    inputs: tuple[FileEntry, ...]
    output: str
    seconds: float
    peak_rss_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The contract quantplan/artifact/1."""

    files: tuple[FileEntry, ...]
    quant: str
    source: Mapping[str, Any]
    tools: Mapping[str, Any]
    steps: tuple[StepEntry, ...]
    texts: tuple[FileEntry, ...]
    # What later versions added; None where a receipt is older.
    calibration: FileEntry | None = None  # the text of the importance matrix
    imatrix: Mapping[str, Any] | None = None  # its hash, chunks, and the tensors or experts it has no data of
    fallbacks: tuple[str, ...] | None = None  # tensors that got another type than the preset's
    overrides: Mapping[str, Any] | None = None  # tensor types that were set over the preset

    @property
    def model_file(self) -> FileEntry:
        """The GGUF that is served, of a split one its first file. A projector's is not it."""
        found = [entry for entry in self.files if entry.name.endswith(".gguf")]
        return next((entry for entry in found if not entry.name.startswith(MMPROJ_PREFIX)), found[0])

    @property
    def mmproj_file(self) -> FileEntry | None:
        """The projector of a vision or audio model."""
        return next((entry for entry in self.files if entry.name.startswith(MMPROJ_PREFIX)), None)

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        for key in ("calibration", "imatrix", "fallbacks", "overrides"):
            if told[key] is None:
                del told[key]
        return {"schema": SCHEMA, **told}


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def entry_of(path: Path, *, name: str | None = None) -> FileEntry:
    """A file's entry, hashed now."""
    return FileEntry(name=name or path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def write_atomically(path: Path, text: str) -> None:
    """The text under its final name, whole or not at all: written beside it, synced, renamed."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power loss. Where a filesystem refuses this, its own order must do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_receipt(folder: Path, receipt: Receipt) -> Path:
    """Writes artifact.json. Raises BadArtifact where one is there already: it is never changed."""
    path = folder / NAME
    if path.exists():
        raise BadArtifact(path=path, why="a receipt is there already and is never changed")
    write_atomically(path, json.dumps(receipt.to_json(), indent=2) + "\n")
    return path


def read_receipt(folder: Path) -> Receipt:
    """The receipt of an artifact folder. Raises BadArtifact when it is missing or not one."""
    path = folder / NAME
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            raise BadArtifact(path=path, why=f"has schema {told['schema']!r}, expected {SCHEMA!r}")
        receipt = Receipt(
            files=tuple(FileEntry(**entry) for entry in told["files"]),
            quant=str(told["quant"]),
            source=dict(told["source"]),
            tools=dict(told["tools"]),
            steps=tuple(_step(entry) for entry in told["steps"]),
            texts=tuple(FileEntry(**entry) for entry in told["texts"]),
            calibration=FileEntry(**told["calibration"]) if told.get("calibration") else None,
            imatrix=told.get("imatrix"),
            fallbacks=tuple(told["fallbacks"]) if told.get("fallbacks") is not None else None,
            overrides=told.get("overrides"),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise NoArtifact(path=folder, why="is no artifact: it has no artifact.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(path=path, why=f"is not a receipt ({error})") from error
    if not any(entry.name.endswith(".gguf") for entry in receipt.files):
        raise BadArtifact(path=path, why="names no GGUF file")
    if any(Path(entry.name).name != entry.name or entry.name.startswith(".") for entry in receipt.files):
        raise BadArtifact(path=path, why="names a file outside its folder")
    return receipt


def _step(told: Mapping[str, Any]) -> StepEntry:
    inputs = tuple(FileEntry(**entry) for entry in told["inputs"])
    return StepEntry(**{**told, "argv": tuple(told["argv"]), "inputs": inputs})
