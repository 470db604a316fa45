"""From what was typed to GGUF files on this disk: a hub repository, another program's store, or a local file."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import errors
from quantplan.model import catalog
from quantplan.model.gguf_choice import model_files, quant_of
from quantplan.model.gguf_split import shard_names
from quantplan.model.local_stores import Held, find_held, gguf_in, held_name
from quantplan.model.model_name import HubName, hub_name, hub_name_of_url
from quantplan.pipeline.pull import Finished
from quantplan.places import cache_folder

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts
    from quantplan.model.facts import ModelFacts
    from quantplan.model.hub import Hub
    from quantplan.model.hub_files import HubFiles

_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
_FULL = ("BF16", "F16", "F32", "Q8_0")  # what a quantization can be held against, the best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A GGUF that is meant, before its bytes are here. `why` tells how it was chosen."""

    name: str
    label: str
    why: str
    licence: str | None = None
    base_model: str | None = None
    held: Held | None = None
    local: tuple[Path, ...] = ()
    hub: Hub | None = None
    files: HubFiles | None = None
    file_names: tuple[str, ...] = ()
    reference_name: str | None = None  # a file of the same repository to judge by
    warnings: tuple[str, ...] = ()


def choose(model: str, *, quant: str | None, n_ctx: int | None, host: HostFacts) -> Chosen:
    """What MODEL means. Raises UnknownModel, ChooseFile, HubFileNotFound, HubError, DoesNotFit."""
    store = held_name(model)
    if store is not None:
        return _of_store(find_held(*store), quant)
    given = Path(model).expanduser()
    if given.is_file():
        files = tuple(given.with_name(name) for name in shard_names(given.name))
        return _local(files, quant)
    if given.is_dir():
        return _local(gguf_in(given, quant=quant), quant)
    name = _on_the_hub(model)
    if name is None:
        raise errors.UnknownModel(model=model, near=catalog.near(model))
    return _of_hub(name, quant=quant, n_ctx=n_ctx, host=host)


def _on_the_hub(model: str) -> HubName | None:
    if model.startswith(("https://", "http://")):
        from quantplan.model.hub import Hub

        return hub_name_of_url(model, endpoint=Hub().endpoint)
    return hub_name(model)


def _local(files: tuple[Path, ...], quant: str | None) -> Chosen:
    for path in files:
        if not path.is_file():
            raise errors.BadModelFile(path=path, why="is missing: the model is split, and this is one of its files")
    name = _stem(files[0].name)
    label = quant or quant_of(files[0].name) or own_label(files[0])
    return Chosen(name=name, label=label.upper(), why="the file that was named", local=files)


def _of_store(found: Held, quant: str | None) -> Chosen:
    label = (quant or found.quant or own_label(found.files[0])).upper()
    base = found.files[0].name if found.store != "ollama" else re.sub(r"[^\w.\-]+", "-", found.name)
    name = _stem(base) if found.store != "ollama" else f"{base}-{label}" if label not in base.upper() else base
    return Chosen(name=name, label=label, why=f"what {found.store} holds as {found.name}", held=found)


def own_label(path: Path) -> str:
    """The preset that a file's own metadata names; UNKNOWN where it names none."""
    from quantplan.model.gguf_header import read_gguf_header
    from quantplan.quant.presets import PRESETS

    number = read_gguf_header(path).metadata.get("general.file_type")
    return next((p.file_type for p in PRESETS.values() if p.file_type_id == number), "UNKNOWN")


def _stem(name: str) -> str:
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name, flags=re.IGNORECASE)


def _of_hub(name: HubName, *, quant: str | None, n_ctx: int | None, host: HostFacts) -> Chosen:
    from quantplan.model.gguf_choice import choose_gguf
    from quantplan.model.hub import Hub
    from quantplan.model.hub_cache import HubCache
    from quantplan.model.hub_files import HubFiles, find_repository

    hub, cache = Hub(), HubCache(cache_folder() / "hub")
    repository, warnings = find_repository(hub, cache, name.repo, name.revision)
    files = HubFiles(hub, cache, repository)
    offered = model_files(files.names())
    if not offered:
        raise errors.HoldsNoGguf(repo=repository.id)
    if name.file is not None:
        file, why = name.file, "the file that was named"
    elif quant or name.quant or len(offered) == 1:
        file = choose_gguf(files.names(), model=repository.id, quant=quant or name.quant)
        why = "the preset that was named" if quant or name.quant else "the only model there"
    else:
        file, why = _by_planner(files, offered, n_ctx=n_ctx, host=host)
    shards = shards_of(file)
    for shard in shards:
        repository.file(shard)
    base = Path(shards[0]).name
    return Chosen(
        name=_stem(base), label=(quant_of(file) or quant or name.quant or "UNKNOWN").upper(), why=why,
        licence=repository.licence, base_model=repository.base_model, hub=hub, files=files,
        file_names=(*shards, *_projector(files.names())), reference_name=_reference(offered, file), warnings=warnings,
    )  # fmt: skip


def shards_of(file: str) -> tuple[str, ...]:
    """The names of all files of the model that a file belongs to, in its folder."""
    folder, slash, base = file.rpartition("/")
    return tuple(f"{folder}{slash}{shard}" for shard in (shard_names(base) or (base,)))


def _projector(names: Sequence[str]) -> tuple[str, ...]:
    """The projector of a vision model: the one of 16 bits where there are several."""
    found = [name for name in names if Path(name).name.startswith("mmproj-") and name.endswith(".gguf")]
    ranked = sorted(found, key=lambda n: _PROJECTORS.index(q) if (q := quant_of(n)) in _PROJECTORS else 9)
    return tuple(ranked[:1])


def _reference(offered: Sequence[str], file: str) -> str | None:
    """The 16-bit file of the same repository, else its Q8_0; never the file itself."""
    by_quant = {(quant_of(name) or "").upper(): name for name in offered if name != file}
    own = (quant_of(file) or "").upper()
    return next((by_quant[quant] for quant in _FULL if quant in by_quant and own not in ("BF16", "F16", "F32")), None)


def _by_planner(files: HubFiles, offered: Sequence[str], *, n_ctx: int | None, host: HostFacts) -> tuple[str, str]:
    """The file whose preset the planner would choose for this host, and why. One header is read for all."""
    from quantplan.cli import planning
    from quantplan.planner.request import PlanRequest
    from quantplan.quant.presets import PRESETS

    by_preset: dict[str, str] = {}
    for name in offered:
        told = (quant_of(name) or "").upper()
        if told in PRESETS:
            if PRESETS[told].file_type in by_preset:  # two models in one repository
                raise errors.ChooseFile(model=files.name, asked=None, choices=tuple(offered))
            by_preset[PRESETS[told].file_type] = name
    if not by_preset:
        raise errors.ChooseFile(model=files.name, asked=None, choices=tuple(offered))
    facts = unquantized(_facts(files, next(iter(by_preset.values()))))
    planned = planning.recommend(facts, host, PlanRequest(n_ctx=n_ctx, quants=tuple(by_preset)))
    chosen = planned.plan.quant
    return by_preset[chosen], f"the planner's choice for this host: {'; '.join(planned.choice.why[:2])}"


def _facts(files: HubFiles, name: str) -> ModelFacts:
    from quantplan.model.facts import SourceFacts
    from quantplan.model.read import facts_of
    from quantplan.model.resolve import GgufModel

    source = SourceFacts(repo=files.repository.id, revision=files.repository.commit, file=name)
    return facts_of(GgufModel(id=files.repository.id, header=files.gguf_header(name), source=source))


def unquantized(facts: ModelFacts) -> ModelFacts:
    """The same model as if the file were its 16-bit one: what the planner weighs presets by."""
    from quantplan.pipeline.label import as_16_bit
    from quantplan.quant.presets import PRESETS

    metadata = {**facts.metadata, "general.file_type": PRESETS["BF16"].file_type_id}
    return replace(facts, tensors=as_16_bit(facts.tensors), metadata=metadata)


def fetch(chosen: Chosen) -> Finished:
    """The files on this disk, proved: downloaded where the hub has them, named where they are here already."""
    if chosen.hub is None or chosen.files is None:
        return _here(chosen)
    from quantplan.cli.progress import DownloadBar
    from quantplan.pipeline.download import download

    repository = chosen.files.repository
    began = time.monotonic()
    got = download(chosen.hub, repository, chosen.file_names, progress=DownloadBar(repository.id))
    names = tuple(Path(name).name for name in chosen.file_names)
    expected = {
        Path(name).name: told for name in chosen.file_names if (told := repository.file(name).sha256) is not None
    }
    return Finished(
        name=chosen.name, label=chosen.label, files=got.files, names=names, repo=repository.id,
        revision=repository.commit, licence=chosen.licence, expected=expected, seconds=time.monotonic() - began,
        held_by="huggingface_hub's cache" if set(got.linked) >= set(chosen.file_names) else None,
    )  # fmt: skip


def _here(chosen: Chosen) -> Finished:
    held = chosen.held
    files = held.files if held else chosen.local
    names = tuple(path.name for path in files)
    if held is not None and held.store == "ollama":  # blobs have no names
        n = len(files)
        names = (f"{chosen.name}.gguf",) if n == 1 else tuple(
            f"{chosen.name}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)
        )  # fmt: skip
    expected = {names[0]: held.sha256} if held and held.sha256 else {}
    return Finished(
        name=chosen.name, label=chosen.label, files=files, names=names, repo=held.repo if held else None,
        revision=held.revision if held else None, held_by=held.store if held else None, expected=expected,
    )  # fmt: skip
