"""MODEL as a source to build from, before anything of its weights is there: a folder, or a repository at a commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import errors
from quantplan.model import catalog
from quantplan.model.checkpoint import CheckpointFiles, FolderFiles, read_checkpoint
from quantplan.model.facts import SourceFacts
from quantplan.model.gguf_choice import holds_only_gguf
from quantplan.model.model_name import HubName, hub_name
from quantplan.model.repository import Repository
from quantplan.model.resolve import CheckpointModel
from quantplan.places import cache_folder

if TYPE_CHECKING:
    from quantplan.model.hub import Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`name` is that of the artifacts. A repository's files are not here yet: then `folder` is None."""

    name: str
    files: CheckpointFiles
    checkpoint: CheckpointModel
    folder: Path | None = None
    repository: Repository | None = None
    hub: Hub | None = None

    @property
    def licence(self) -> str | None:
        return self.checkpoint.licence

    def bytes_of(self, name: str) -> int | None:
        """The size of one of its files."""
        if self.repository is not None:
            return self.repository.file(name).n_bytes
        assert self.folder is not None
        return (self.folder / name).stat().st_size


def find_candidate(model: str, *, endpoint: str | None = None) -> Candidate:
    """What MODEL names as a source: a folder, a catalog model (the bundled one lies here, others on the hub), or
    `org/name[@revision]`.

    Raises UnknownModel, BadModelFile for what cannot be built from, or a HubError.
    """
    given = Path(model).expanduser()
    if given.is_dir():
        return _from_folder(given)
    if given.is_file():
        why = "is a file: build starts from a folder in Hugging Face format or a repository of the hub"
        raise errors.BadModelFile(path=given, why=why)
    entry = catalog.find(model)
    if entry is not None and entry.folder is not None:
        return _from_folder(entry.folder)
    name = hub_name(entry.id if entry is not None else model)
    if name is None or given.is_absolute() or model.startswith((".", "~")):
        if "/" in model and given.parent.is_dir():
            raise errors.BadModelFile(path=given, why="no such folder")
        raise errors.UnknownModel(model=model, near=catalog.near(model) or (catalog.BUNDLED,))
    return _from_hub(name, endpoint=endpoint)


def _from_folder(folder: Path) -> Candidate:
    files = FolderFiles(folder)
    return Candidate(
        name=folder.resolve().name, files=files, folder=folder,
        checkpoint=_checkpoint(files, model=folder.resolve().name, source=SourceFacts(file=str(folder))),
    )  # fmt: skip


def _from_hub(name: HubName, *, endpoint: str | None) -> Candidate:
    from quantplan.model.hub import Hub
    from quantplan.model.hub_cache import HubCache
    from quantplan.model.hub_files import HubFiles, find_repository

    cache, hub = HubCache(cache_folder() / "hub"), Hub(endpoint=endpoint)
    try:
        repository, warnings = find_repository(hub, cache, name.repo, name.revision)
    except errors.RepositoryNotFound as error:
        raise errors.RepositoryNotFound(repo=error.repo, near=tuple(catalog.near(name.repo))) from None
    files = HubFiles(hub, cache, repository)
    if name.quant or name.file or holds_only_gguf(files.names()):
        raise errors.HoldsGgufOnly(repo=repository.id, file=name.file or name.quant)
    source = SourceFacts(repo=repository.id, revision=repository.commit)
    checkpoint = _checkpoint(files, model=repository.id, source=source, licence=repository.licence, warnings=warnings)
    return Candidate(
        name=repository.id.rsplit("/", 1)[-1], files=files, checkpoint=checkpoint, repository=repository, hub=hub
    )


def _checkpoint(
    files: CheckpointFiles, *, model: str, source: SourceFacts, licence: str | None = None, warnings: Sequence[str] = ()
) -> CheckpointModel:
    found = read_checkpoint(files)
    return CheckpointModel(
        id=model, config=found.config, tensors=found.tensors, source=source, licence=licence or found.licence,
        has_chat_template=found.has_chat_template, warnings=(*warnings, *found.warnings),
    )  # fmt: skip
