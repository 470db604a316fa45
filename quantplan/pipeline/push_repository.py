"""What a hub repository holds already: its files, and the artifacts whose receipts and results lie there.

An artifact lies in a folder of its own name, laid out as here: who downloads that folder can verify it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantplan import errors
from quantplan.artifact.receipt import MMPROJ_PREFIX, NAME, FileEntry, Receipt, read_receipt
from quantplan.artifact.store import Artifact, read_artifact
from quantplan.model.hub import Hub
from quantplan.model.hub_cache import HubCache
from quantplan.model.hub_files import HubFiles
from quantplan.model.repository import HubFile, Repository
from quantplan.places import cache_folder

CARD = "README.md"
_MAX_SMALL_BYTES = 32 << 20
_SMALL = re.compile(r"[^/]+/(artifact\.json|results/gate-[^/]+\.json)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository at one commit; `folder` mirrors the receipts and gate results that lie there."""

    repository: Repository
    files: dict[str, HubFile]
    folder: Path
    card: str | None
    warnings: tuple[str, ...] = field(default=())

    def artifacts(self) -> tuple[Artifact, ...]:
        """Those whose files are what their receipts say, by name."""
        found = [_artifact(path.parent) for path in sorted(self.folder.glob(f"*/{NAME}"))]
        return tuple(one for one in found if one is not None and self.lacking(one.folder.name, one.receipt) is None)

    def lacking(self, name: str, receipt: Receipt) -> str | None:
        """The first file of a receipt that is not there with its hash."""
        for entry in receipt.files:
            there = self.files.get(f"{name}/{entry.name}")
            if there is None or not is_same(there, entry):
                return entry.name
        return None


def is_same(there: HubFile, entry: FileEntry) -> bool:
    """Whether a large file of the hub has that content. One that the hub has no sha256 of is taken for another."""
    return there.sha256 == entry.sha256


def read_remote(reader: Hub, repository: Repository, folder: Path) -> Remote:
    """The repository with its card; receipts and gate results are mirrored into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hub = HubFiles(reader, HubCache(cache_folder() / "hub"), repository)
    files = {file.name: file for file in repository.files}
    for name in files:
        if _SMALL.fullmatch(name):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(hub.read(name, max_bytes=_MAX_SMALL_BYTES))
    card = hub.read(CARD, max_bytes=_MAX_SMALL_BYTES).decode("utf-8", errors="replace") if CARD in files else None
    remote = Remote(repository=repository, files=files, folder=folder, card=card)
    return Remote(
        repository=repository, files=files, folder=folder, card=card, warnings=tuple(_warnings(remote)),
    )  # fmt: skip


def _warnings(remote: Remote) -> Sequence[str]:
    said = []
    for path in sorted(remote.folder.glob(f"*/{NAME}")):
        name, found = path.parent.name, _artifact(path.parent)
        if found is None:
            said.append(f"{remote.repository.id}/{name}/{NAME} is no receipt: the card leaves it out")
        elif (lacking := remote.lacking(name, found.receipt)) is not None:
            said.append(f"{remote.repository.id}/{name}/{lacking} is not what its receipt says: the card leaves it out")
    return said


def _artifact(folder: Path) -> Artifact | None:
    try:
        return read_artifact(folder)
    except errors.BadArtifact:
        return None


def keeps_theirs(remote: Remote, own: Artifact) -> bool:
    """Whether a receipt of these very files lies there that is not ours: made elsewhere, and never changed.

    Raises HubNameTaken for a receipt of other files.
    """
    name = own.folder.name
    path = remote.folder / name
    if not (path / NAME).exists():
        return False
    try:
        theirs = read_receipt(path)
    except errors.BadArtifact as error:
        raise errors.HubNameTaken(repo=remote.repository.id, name=f"{name}/{NAME}", why=error.why) from None
    if theirs.quant != own.receipt.quant or set(theirs.files) != set(own.receipt.files):
        why = "the receipt there is of another artifact"
        raise errors.HubNameTaken(repo=remote.repository.id, name=f"{name}/", why=why)
    return (path / NAME).read_bytes() != (own.folder / NAME).read_bytes()


def check_names(remote: Remote, name: str, files: Sequence[FileEntry]) -> tuple[str, ...]:
    """The names that lie there already with this content.

    Raises HubNameTaken for another content under one of the names, for a model also where it lies in another folder:
    who asks for it by its name would get either.
    """
    same = []
    for entry in files:
        for path, there in remote.files.items():
            own = path == f"{name}/{entry.name}"
            alike = path.rpartition("/")[2] == entry.name and not entry.name.startswith(MMPROJ_PREFIX)
            if not (own or alike):
                continue
            if not is_same(there, entry):
                theirs = there.sha256 or there.blob_id or "another"
                why = f"the file there is another one ({theirs[:16]}…, this is {entry.sha256[:16]}…)"
                raise errors.HubNameTaken(repo=remote.repository.id, name=path, why=why)
            same += [path] if own else []
    return tuple(same)
