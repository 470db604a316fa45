"""The header of a GGUF file: key-values and tensor list, read as untrusted input and never built needlessly.

gguf.GGUFReader builds a numpy array per token, which takes seconds on a real vocabulary. Here token arrays are
walked over, and what is kept is bounded, so that no header can cost more than some tens of MiB or a second.
The rules are those of ggml/src/gguf.cpp of the pinned build (0c1e570); where it refuses a file, so do we.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from quantplan.ggml_types import GgmlType, ggml_types_by_value
from quantplan.model.byte_window import ByteSource, FileSource, Window
from quantplan.model.gguf_values import ArrayInfo, Values
from quantplan.units import MIB, pad

__all__ = ["ArrayInfo", "GgufHeader", "GgufTensor", "ShardInfo", "parse_gguf_header", "read_gguf_header"]

DEFAULT_ALIGNMENT = 32  # ggml/include/gguf.h: GGUF_DEFAULT_ALIGNMENT
MAX_DIMS = 4  # ggml/include/ggml.h: GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # ggml/include/ggml.h: GGML_MAX_NAME 64, with its end mark

# Limits of ours; docs/gguf-header.md has them beside the largest headers met.
MAX_HEADER_BYTES = 256 * MIB
MAX_TENSORS = 65_536
MAX_KEYS = 16_384
MAX_KEY_BYTES = 65_535  # docs/gguf.md of ggml: keys are at most 2^16 - 1 bytes

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_COUNTS = struct.Struct("<QQ")
_TAIL_STRUCTS = {n: struct.Struct(f"<{n}QIQ") for n in range(1, MAX_DIMS + 1)}  # dims, type, offset
_SMALLEST_KEY = 8 + 1 + 4 + 1  # a name of one byte and a value of one
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor: `shape` in ggml order, row length first; `offset` relative to the data_offset of its shard."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int
    shard: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One file of a split model. `file_bytes` is None where a server does not tell it."""

    path: str
    data_offset: int
    file_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """One model, from one file or from all shards of a split one.

    `metadata` maps keys to Python scalars, str, tuples (small arrays) and ArrayInfo (skipped arrays); of a split
    model those of the first shard. `data_offset` is that of the first shard, `file_bytes` the sum over shards.
    """

    version: int
    alignment: int
    metadata: Mapping[str, object]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_bytes: int | None
    shards: tuple[ShardInfo, ...] = ()


def read_gguf_header(path: str | Path) -> GgufHeader:
    """The header of a local GGUF file; of a split one by any of its shards.

    Raises BadModelFile, naming key or tensor and offset, on anything the engine would refuse.
    """
    from quantplan.model.gguf_split import read_split

    def open_shard(name: str) -> GgufHeader:
        with FileSource(Path(path).parent / name) as source:
            return parse_gguf_header(source)

    return read_split(Path(path).name, open_shard, where=Path(path).parent)


def parse_gguf_header(source: ByteSource) -> GgufHeader:
    """The header of one file. Tensors must lie inside the file, in order and without gaps, as the engine demands."""
    window = Window(source, limit=MAX_HEADER_BYTES)
    version, n_tensors, n_keys = _read_counts(window)
    metadata: dict[str, object] = {}
    values = Values(window)
    for i in range(n_keys):
        window.what = f"key {i}"
        window.certain_after = (n_keys - i - 1) * _SMALLEST_KEY + n_tensors * _SMALLEST_TENSOR
        at = window.offset
        key = _read_name(window, max_bytes=MAX_KEY_BYTES)
        window.what = f"key {key!r}"
        if key in metadata:
            window.fail("is there twice", rule="gguf-duplicate-key", offset=at)
        metadata[key] = values.read(key)
    alignment = _alignment(window, metadata, values.types)
    tensors = tuple(_read_tensors(window, n_tensors, alignment))
    data_offset = pad(window.offset, alignment) if tensors else window.offset
    _check_inside(window, tensors, data_offset=data_offset, file_bytes=source.size)
    return GgufHeader(
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=tensors,
        data_offset=data_offset,
        file_bytes=source.size,
        shards=(ShardInfo(path=source.name, data_offset=data_offset, file_bytes=source.size),),
    )


def _read_counts(window: Window) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys."""
    magic = window.take(4)
    if magic != b"GGUF":
        shown = "".join(chr(c) if 32 <= c < 127 else "?" for c in magic)
        window.fail(f"this is not a GGUF file: it starts with '{shown}'", rule="gguf-magic", offset=0)
    (version,) = window.unpack(_U32)
    if version and version & 0xFFFF == 0:
        window.fail(
            "this is a big-endian GGUF file, which the engine does not read on this host", rule="gguf-endian", offset=4
        )
    if version not in (2, 3):
        window.fail(f"GGUF version {version} is not supported (2 and 3 are)", rule="gguf-version", offset=4)
    n_tensors, n_keys = window.unpack(_COUNTS)
    window.check_remaining(n_keys * _SMALLEST_KEY, f"declares {n_keys:,} keys", offset=16, rule="gguf-counts")
    if n_keys > MAX_KEYS:
        window.fail(f"declares {n_keys:,} keys, more than {MAX_KEYS:,}", rule="gguf-counts", offset=16)
    window.check_remaining(
        n_tensors * _SMALLEST_TENSOR + n_keys * _SMALLEST_KEY, f"declares {n_tensors:,} tensors", offset=8,
        rule="gguf-counts",
    )  # fmt: skip
    if n_tensors > MAX_TENSORS:
        window.fail(f"declares {n_tensors:,} tensors, more than {MAX_TENSORS:,}", rule="gguf-counts", offset=8)
    return version, n_tensors, n_keys


def _read_name(window: Window, *, max_bytes: int) -> str:
    """A key or tensor name: not empty, UTF-8, printable."""
    at = window.offset
    (length,) = window.unpack(_U64)
    if not 0 < length <= max_bytes:
        window.fail(f"its name has {length:,} bytes, not 1 to {max_bytes:,}", rule="gguf-name", offset=at)
    window.check_remaining(length, f"its name has {length:,} bytes", offset=at, rule="gguf-name")
    try:
        name = str(window.take(length), "utf-8")
    except UnicodeDecodeError:
        window.fail("its name is not UTF-8", rule="gguf-text", offset=at)
    if not name.isprintable():
        window.fail(f"its name {name!r} has control characters", rule="terminal", offset=at)
    return name


def _alignment(window: Window, metadata: Mapping[str, object], types: Mapping[str, int]) -> int:
    window.what = "key 'general.alignment'"
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", 4) != 4 or not isinstance(value, int):
        window.fail("is not a UINT32", rule="gguf-alignment")
    if value == 0 or value & (value - 1):
        window.fail(f"{value} is not a power of two", rule="gguf-alignment")
    return value


def _read_tensors(window: Window, n_tensors: int, alignment: int) -> Iterator[GgufTensor]:
    """The tensors in file order. gguf.cpp: each must start where the one before ended, padded to the alignment."""
    types = ggml_types_by_value()
    seen: set[str] = set()
    expected = 0
    for i in range(n_tensors):
        window.what = f"tensor {i}"
        window.certain_after = (n_tensors - i - 1) * _SMALLEST_TENSOR
        at = window.offset
        name = _read_name(window, max_bytes=MAX_NAME_BYTES)
        window.what = f"tensor {name!r}"
        if name in seen:
            window.fail("is there twice", rule="gguf-duplicate-tensor", offset=at)
        seen.add(name)
        (n_dims,) = window.unpack(_U32)
        if not 1 <= n_dims <= MAX_DIMS:
            window.fail(f"has {n_dims:,} dimensions, not 1 to {MAX_DIMS}", rule="gguf-dims", offset=at)
        *shape, kind, offset = window.unpack(_TAIL_STRUCTS[n_dims])
        layout = types.get(kind)
        if layout is None:
            window.fail(f"has the unknown ggml type {kind}", rule="gguf-tensor-type", offset=at)
        n_bytes = _tensor_bytes(window, shape, layout, at=at)
        if expected + n_bytes >= 2**63:
            window.fail(
                f"ends at byte {expected + n_bytes:,} of the data, beyond any file", rule="gguf-overflow", offset=at
            )
        if offset != expected:
            window.fail(_misplaced(offset, expected, alignment), rule="gguf-offset", offset=at)
        yield GgufTensor(name=name, shape=tuple(shape), type_name=layout.name, offset=offset, n_bytes=n_bytes)
        expected = pad(offset + n_bytes, alignment)


def _tensor_bytes(window: Window, shape: list[int], layout: GgmlType, *, at: int) -> int:
    n_elements = prod(shape)
    if not 0 < n_elements < 2**63:
        window.fail(f"has the impossible shape {tuple(shape)}", rule="gguf-shape", offset=at)
    if shape[0] % layout.block_size:
        window.fail(f"rows of {shape[0]:,} are no whole number of {layout.name} blocks", rule="gguf-shape", offset=at)
    return n_elements // layout.block_size * layout.type_size


def _misplaced(offset: int, expected: int, alignment: int) -> str:
    if offset % alignment:
        return f"its data at {offset:,} is not aligned to {alignment} bytes"
    if offset < expected:
        return f"its data at {offset:,} overlaps the tensor before, which ends at {expected:,}"
    return f"its data at {offset:,} leaves a gap: the engine expects {expected:,}"


def _check_inside(window: Window, tensors: tuple[GgufTensor, ...], *, data_offset: int, file_bytes: int | None) -> None:
    if not tensors or file_bytes is None:
        return
    last = tensors[-1]
    end = data_offset + last.offset + last.n_bytes
    if end > file_bytes:
        first_out = next(t for t in tensors if data_offset + t.offset + t.n_bytes > file_bytes)
        window.what = f"tensor {first_out.name!r}"
        window.fail(
            f"its data ends beyond the file: {end:,} bytes are needed, the file has {file_bytes:,} (is it truncated?)",
            rule="gguf-data-end",
            offset=data_offset + first_out.offset,
        )
