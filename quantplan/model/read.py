"""MODEL in every form to `ModelFacts`: one reader for files, folders, the hub and the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.model.facts import FactsOrigin, ModelFacts, SourceFacts, TensorFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.gguf_header import ArrayInfo, GgufHeader
from quantplan.model.resolve import (
    Catalog,
    CatalogModel,
    CheckpointModel,
    GgufModel,
    ModelSource,
    from_path,
    resolve_model,
)

if TYPE_CHECKING:
    from quantplan.model.catalog import CatalogEntry
    from quantplan.model.hf_config import ConvertedHeader

TOKENS_KEY = "tokenizer.ggml.tokens"
POOLING_TYPES = {"MEAN": 1, "CLS": 2, "LAST": 3}  # gguf-py/gguf/constants.py, PoolingType (commit 0c1e570)


def read_model(model: str, *, cache: Path | None = None, endpoint: str | None = None) -> ModelFacts:
    """The facts of MODEL: a GGUF, a folder, a config.json, `org/name[@revision]`, `org/name:QUANT`, an address of a
    GGUF or a catalog name. Tensors of a checkpoint are those of its bf16 conversion.

    Raises UnknownModel, BadModelFile, BadConfig, UnsupportedArchitecture, ChooseFile or a HubError.
    """
    from quantplan.model import catalog

    known = Catalog(find=catalog.find, near=catalog.near)
    return facts_of(resolve_model(model, catalog=known, cache=cache, endpoint=endpoint))


def facts_of(found: ModelSource[CatalogEntry]) -> ModelFacts:
    """The facts of what was resolved."""
    if isinstance(found, GgufModel):
        return _facts_of_gguf(found)
    if isinstance(found, CatalogModel):
        return _facts_of_entry(found.entry, found.warnings)
    return _facts_of_checkpoint(found)


def convert(found: CheckpointModel) -> ConvertedHeader:
    """The header that the converter would write for a checkpoint."""
    from quantplan.model.hf_config import header_from_config  # 25 ms that a GGUF need not pay

    return header_from_config(found.config, tensors=found.tensors, path=found.source.file or found.id)


def _facts_of_gguf(found: GgufModel) -> ModelFacts:
    header = found.header
    return facts_from_metadata(
        _with_countable_tokens(header),
        tuple(TensorFacts(name=t.name, shape=t.shape, type_name=t.type_name) for t in header.tensors),
        id=found.id,
        origin=FactsOrigin.GGUF_HEADER,
        source=found.source,
        licence=found.licence,
        warnings=found.warnings,
    )


def _with_countable_tokens(header: GgufHeader) -> Mapping[str, object]:
    """The metadata with something of the vocabulary's length where its tokens were skipped."""
    tokens = header.metadata.get(TOKENS_KEY)
    if not isinstance(tokens, ArrayInfo):
        return header.metadata
    return {**header.metadata, TOKENS_KEY: range(tokens.n)}


def _facts_of_checkpoint(found: CheckpointModel) -> ModelFacts:
    converted = convert(found)
    origin = FactsOrigin.CONFIG if converted.derived else FactsOrigin.SAFETENSORS_HEADERS
    facts = facts_from_metadata(
        converted.metadata,
        converted.tensors,
        id=found.id,
        origin=origin,
        source=found.source,
        licence=found.licence,
        has_chat_template=found.has_chat_template,
        warnings=(*found.warnings, *converted.warnings),
    )
    sees = bool(converted.vision_bytes) or isinstance(found.config.get("vision_config"), Mapping)
    return replace(facts, sees=sees, vision_bytes=converted.vision_bytes or None)


def _facts_of_entry(entry: CatalogEntry, warnings: Sequence[str]) -> ModelFacts:
    if entry.folder is not None:
        bundled = facts_of(from_path(entry.folder))
        return replace(bundled, id=entry.id, warnings=(*warnings, *bundled.warnings))
    from quantplan.model.hf_config import header_from_config

    converted = header_from_config(entry.config, path=entry.id)
    facts = facts_from_metadata(
        _with_pooling(converted.metadata, entry.pooling),
        converted.tensors,
        id=entry.id,
        origin=FactsOrigin.CATALOG,
        source=SourceFacts(repo=entry.id),
        licence=entry.licence,
        warnings=(*warnings, *([f"{entry.id}: {entry.note}"] if entry.note else []), *converted.warnings),
    )
    tower = entry.vision_parameters
    # the catalog has configurations only; towers are kept in 16 bit
    return replace(facts, has_chat_template=None, sees=facts.sees or tower is not None,
                   vision_bytes=2 * tower if tower else None)  # fmt: skip


def _with_pooling(metadata: Mapping[str, object], pooling: str | None) -> Mapping[str, object]:
    """The metadata with what the converter reads of an embedding model's modules.json."""
    if pooling is None:
        return metadata
    return {**metadata, f"{metadata['general.architecture']}.pooling_type": POOLING_TYPES[pooling]}
