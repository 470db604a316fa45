"""Finding an artifact by what people type, and checking that it is still what its receipt says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import NAME, Receipt, read_receipt, sha256_of
from quantplan.artifact.results import Result, Verdict, newest_result
from quantplan.errors import BadArtifact, NoArtifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A folder with a receipt, and the newest gate result beside it."""

    folder: Path
    receipt: Receipt
    gate: Result | None

    @property
    def model(self) -> Path:
        return self.folder / self.receipt.model_file.name


def artifact_folder(given: Path) -> Path:
    """The folder that is meant by a folder, its artifact.json or the GGUF in it. Raises NoArtifact."""
    if not given.exists():
        raise NoArtifact(path=given, why="no such artifact")
    return given.parent if given.is_file() else given


def find_artifact(given: Path) -> Artifact:
    """An artifact by its folder, its artifact.json or the GGUF in it. Raises BadArtifact."""
    folder = artifact_folder(given)
    receipt = read_receipt(folder)
    named = {entry.name for entry in receipt.files}
    if given.is_file() and given.name != NAME and given.name not in named:
        raise BadArtifact(path=given, why="is not named by the receipt beside it")
    return Artifact(folder=folder, receipt=receipt, gate=newest_result(folder, "gate"))


def read_artifact(folder: Path) -> Artifact:
    """The artifact of a folder. Raises BadArtifact."""
    return Artifact(folder=folder, receipt=read_receipt(folder), gate=newest_result(folder, "gate"))


def check_files(artifact: Artifact) -> None:
    """Every file against its hash. Raises BadArtifact naming the first that is missing or changed."""
    for entry in artifact.receipt.files:
        path = artifact.folder / entry.name
        if not path.is_file():
            raise BadArtifact(path=path, why="is named by the receipt and missing")
        if path.stat().st_size != entry.bytes:
            raise BadArtifact(path=path, why=f"has {path.stat().st_size} bytes, its receipt says {entry.bytes}")
        found = sha256_of(path)
        if found != entry.sha256:
            raise BadArtifact(path=path, why=f"sha256 is {found[:16]}…, its receipt says {entry.sha256[:16]}…")


def gate_objection(artifact: Artifact) -> str | None:
    """Why this artifact may not be served, or None when its newest gate result is a pass for this very file."""
    if artifact.gate is None:
        return "has no gate result"
    if artifact.gate.artifact_sha256 != artifact.receipt.model_file.sha256:
        return "its newest gate result is about another file"
    if artifact.gate.verdict is not Verdict.PASS:
        return f"its newest gate result is {artifact.gate.verdict.value}, not pass"
    return None
