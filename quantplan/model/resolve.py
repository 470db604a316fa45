"""MODEL in every form people have, to the raw material of its facts: one resolver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from quantplan import errors
from quantplan.model.checkpoint import INDEX_FILE, FolderFiles, read_checkpoint, read_small
from quantplan.model.facts import SourceFacts
from quantplan.model.gguf_choice import choose_gguf, holds_only_gguf
from quantplan.model.gguf_header import GgufHeader, parse_gguf_header, read_gguf_header
from quantplan.model.gguf_split import read_split
from quantplan.model.safetensors_header import MAX_CONFIG_BYTES, SafetensorsTensor, parse_json_object
from quantplan.places import cache_folder

if TYPE_CHECKING:
    from quantplan.model.hub_files import HubFiles
    from quantplan.model.model_name import HubName

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """MODEL is a GGUF: a file, a split one, a file of a repository, an address."""

    id: str
    header: GgufHeader
    source: SourceFacts
    licence: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointModel:
    """MODEL is a Hugging Face checkpoint. `tensors` is None where only the configuration is known."""

    id: str
    config: Mapping[str, object]
    tensors: tuple[SafetensorsTensor, ...] | None
    source: SourceFacts
    licence: str | None = None
    has_chat_template: bool | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)  # no slots: Generic sets an attribute on what it makes
class CatalogModel(Generic[Entry]):
    """MODEL is in the catalog that ships with quantplan: nothing was asked of the hub."""

    entry: Entry
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)  # no slots: Generic sets an attribute on what it makes
class Catalog(Generic[Entry]):
    """What the resolver asks of a catalog: an entry by id, bare name or alias; and names like one."""

    find: Callable[[str], Entry | None]
    near: Callable[[str], Sequence[str]] = lambda name: ()


ModelSource = GgufModel | CheckpointModel | CatalogModel[Entry]


def resolve_model(
    model: str, *, catalog: Catalog[Entry], cache: Path | None = None, endpoint: str | None = None
) -> ModelSource[Entry]:
    """What MODEL is and what can be read of it without a tensor byte.

    A local file or folder comes first, then the catalog (unless a revision, quant or file is asked for), then the
    hub. Raises UnknownModel, BadModelFile, ChooseFile or a HubError.
    """
    if model.startswith(("https://", "http://")):
        return _from_url(model, catalog=catalog, cache=cache, endpoint=endpoint)
    if not model or "\0" in model:
        raise errors.UnknownModel(model=model)
    path = _existing(model)
    if path is not None:
        return from_path(path)
    from quantplan.model.model_name import hub_name  # what a local file does not need is imported where it is used

    name = hub_name(model)
    if model.startswith(("./", "../", "/", "~")) or (name is None and model.endswith(".gguf")):
        raise errors.BadModelFile(path=model, why="no such file or folder")
    if name is None or name.is_plain:
        entry = catalog.find(model)
        if entry is not None:
            return CatalogModel(entry=entry)
    if name is None:
        raise errors.UnknownModel(model=model, near=tuple(catalog.near(model)))
    return from_hub(name, catalog=catalog, cache=cache, endpoint=endpoint)


def _existing(model: str) -> Path | None:
    """The local file or folder of that name. Raises BadModelFile where the system does not let us look."""
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except PermissionError as error:
        raise errors.BadModelFile(path=model, why=error.strerror or str(error)) from None
    except (OSError, RuntimeError, ValueError):  # a name too long for a file, or a home that nobody has
        return None


def from_path(path: Path) -> GgufModel | CheckpointModel:
    """A GGUF, a configuration, or a folder with either. Raises BadModelFile, ChooseFile."""
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".json":
        if path.name == INDEX_FILE:
            return _from_folder(path.parent)
        config = parse_json_object(
            read_small(path, max_bytes=MAX_CONFIG_BYTES), name=str(path), max_bytes=MAX_CONFIG_BYTES
        )
        name = path.parent.resolve().name if path.name == "config.json" else path.stem
        source = SourceFacts(file=str(path))
        return CheckpointModel(id=name, config=config, tensors=None, source=source)
    if path.suffix == ".safetensors":
        return _from_folder(path.parent)
    return _from_gguf(path)


def _from_gguf(path: Path) -> GgufModel:
    return GgufModel(
        id=path.name.removesuffix(".gguf"), header=read_gguf_header(path), source=SourceFacts(file=str(path))
    )


def _from_folder(folder: Path) -> GgufModel | CheckpointModel:
    files = FolderFiles(folder)
    names = files.names()
    if holds_only_gguf(names):
        return _from_gguf(folder / choose_gguf(names, model=str(folder)))
    found = read_checkpoint(files)
    return CheckpointModel(
        id=folder.resolve().name,
        config=found.config,
        tensors=found.tensors,
        source=SourceFacts(file=str(folder)),
        licence=found.licence,
        has_chat_template=found.has_chat_template,
        warnings=found.warnings,
    )


def from_hub(
    name: HubName, *, catalog: Catalog[Entry], cache: Path | None = None, endpoint: str | None = None
) -> ModelSource[Entry]:
    """A model on the hub; where the hub cannot be asked, the catalog's entry of it, with a warning."""
    from quantplan.model.hub import Hub
    from quantplan.model.hub_cache import HubCache
    from quantplan.model.hub_files import HubFiles, find_repository

    kept = HubCache(cache or cache_folder() / "hub")
    hub = Hub(endpoint=endpoint)
    try:
        repository, warnings = find_repository(hub, kept, name.repo, name.revision)
        files = HubFiles(hub, kept, repository)
        return _from_repository(name, files, warnings=warnings)
    except (errors.HubOffline, errors.HubUnreachable) as error:
        entry = catalog.find(name.repo)
        if entry is None and (near := tuple(catalog.near(name.repo))):
            raise errors.NotInCatalog(model=name.repo, near=near, why=str(error)) from error
        if entry is None:
            raise
        return CatalogModel(entry=entry, warnings=(f"{error}: {name.repo} is answered from the catalog",))
    except errors.RepositoryNotFound as error:
        raise errors.RepositoryNotFound(repo=error.repo, near=tuple(catalog.near(name.repo))) from None


def _from_repository(name: HubName, files: HubFiles, *, warnings: tuple[str, ...]) -> GgufModel | CheckpointModel:
    repository, names = files.repository, files.names()
    file = name.file
    if file is None and (name.quant is not None or holds_only_gguf(names)):
        file = choose_gguf(names, model=repository.id, quant=name.quant)
    source = SourceFacts(repo=repository.id, revision=repository.commit, file=file)
    if file is not None:
        return GgufModel(
            id=f"{repository.id}/{file}",
            header=files.gguf_header(file),
            source=replace(source, sha256=repository.file(file).sha256),
            licence=repository.licence,
            warnings=warnings,
        )
    found = read_checkpoint(files)
    return CheckpointModel(
        id=repository.id,
        config=found.config,
        tensors=found.tensors,
        source=source,
        licence=repository.licence or found.licence,
        has_chat_template=found.has_chat_template,
        warnings=warnings + found.warnings,
    )


def _from_url(
    url: str, *, catalog: Catalog[Entry], cache: Path | None = None, endpoint: str | None = None
) -> ModelSource[Entry]:
    from quantplan.model.hub import Hub
    from quantplan.model.model_name import hub_name_of_url
    from quantplan.model.ranges import RangeSource

    hub = Hub(endpoint=endpoint)
    name = hub_name_of_url(url, endpoint=hub.endpoint)
    if name is not None:
        return from_hub(name, catalog=catalog, cache=cache, endpoint=endpoint)
    plain = url.split("?", 1)[0].split("#", 1)[0]
    folder, _, base = plain.rpartition("/")

    def read(shard: str) -> GgufHeader:
        address = url if shard == base else url.replace(base, shard)
        with RangeSource(address.split("?", 1)[0], hub.url_ranges(address)) as source:
            return parse_gguf_header(source)

    header = read_split(base, read, where=folder)
    return GgufModel(id=base.removesuffix(".gguf"), header=header, source=SourceFacts(file=plain))
