"""Facts as the JSON they are kept in: GGUF headers and safetensors headers, there and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from quantplan.model.gguf_header import ArrayInfo, GgufHeader, GgufTensor, ShardInfo
from quantplan.model.safetensors_header import SafetensorsTensor

FORMAT = 1  # of what is kept: raised when its layout changes
Tensors = Mapping[str, tuple[SafetensorsTensor, ...]]


def to_kept(facts: Mapping[str, object]) -> bytes:
    return json.dumps({"format": FORMAT, **facts}, separators=(",", ":")).encode()


def from_kept(content: bytes | None) -> dict[str, Any] | None:
    """What was kept, if it is of this format. What was cut or changed counts as not kept."""
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.pop("format", None) == FORMAT else None


def tensors_to_json(files: Tensors) -> bytes:
    return to_kept(
        {"tensors": {name: [[t.name, t.dtype, t.shape] for t in tensors] for name, tensors in files.items()}}
    )


def tensors_from_json(content: bytes | None) -> dict[str, tuple[SafetensorsTensor, ...]]:
    kept = from_kept(content)
    try:
        return {
            file: tuple(SafetensorsTensor(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in rows)
            for file, rows in (kept["tensors"] if kept else {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def header_to_json(header: GgufHeader) -> bytes:
    """Tuples become arrays; a skipped array becomes an object, which no GGUF value is."""
    plain = asdict(replace(header, metadata={}, tensors=(), shards=()))
    metadata = {key: asdict(value) if isinstance(value, ArrayInfo) else value for key, value in header.metadata.items()}
    tensors = [[t.name, t.shape, t.type_name, t.offset, t.n_bytes, t.shard] for t in header.tensors]
    shards = [asdict(shard) for shard in header.shards]
    return to_kept({**plain, "metadata": metadata, "tensors": tensors, "shards": shards})


def header_from_json(content: bytes | None) -> GgufHeader | None:
    kept = from_kept(content)
    if kept is None:
        return None
    try:
        metadata = {key: _value(value) for key, value in kept.pop("metadata").items()}
        tensors = tuple(
            GgufTensor(name=name, shape=tuple(shape), type_name=type_name, offset=offset, n_bytes=n_bytes, shard=shard)
            for name, shape, type_name, offset, n_bytes, shard in kept.pop("tensors")
        )
        shards = tuple(ShardInfo(**shard) for shard in kept.pop("shards"))
        return GgufHeader(metadata=metadata, tensors=tensors, shards=shards, **kept)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _value(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    return ArrayInfo(**value) if isinstance(value, dict) else value
