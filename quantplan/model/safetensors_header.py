"""The header of a safetensors file: names, types and shapes, never a tensor byte. Untrusted input, as any header.

The rules are those of the format (safetensors, README "Format"): 8 bytes of length, that much JSON, then the data
without holes or overlaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from quantplan.errors import BadModelFile
from quantplan.model.byte_window import FileSource
from quantplan.units import MIB

MAX_HEADER_BYTES = 24 * MIB  # the 92,000 tensors of a 671B model take 12 MB in all its shards together
MAX_CONTAINERS = 1_000_000  # objects and arrays in one JSON text: what a small file may cost when it is parsed
MAX_CONFIG_BYTES = 4 * MIB
MAX_INDEX_BYTES = 32 * MIB

# safetensors/src/tensor.rs: enum Dtype; bits an element, as the sub-byte types (F4, F6) have no whole byte
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsTensor:
    """One tensor of a checkpoint: `shape` in torch's order, `dtype` a name of DTYPE_BITS."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n

    @property
    def n_bytes(self) -> int:
        return -(-self.n_elements * DTYPE_BITS[self.dtype] // 8)


def read_safetensors_header(path: str | Path) -> tuple[SafetensorsTensor, ...]:
    """The tensors of a local file, in the order of their data. Raises BadModelFile."""
    with FileSource(Path(path)) as source:
        raw = source.read(0, 8, certain=8)
        length = header_length(raw, name=source.name, file_bytes=source.size)
        if 8 + length > len(raw):
            raw = source.read(0, 8 + length, certain=8 + length)
        return parse_safetensors_header(raw[8 : 8 + length], name=source.name, file_bytes=source.size)


def header_length(raw: bytes, *, name: str, file_bytes: int | None) -> int:
    """Bytes of JSON after the first eight."""
    if len(raw) < 8:
        raise BadModelFile(path=name, why="is too short for a safetensors file", offset=len(raw))
    (length,) = struct.unpack_from("<Q", raw)
    if length > MAX_HEADER_BYTES:
        raise BadModelFile(path=name, why=f"declares a header of {length:,} bytes: not a safetensors file?", offset=0)
    if file_bytes is not None and 8 + length > file_bytes:
        raise BadModelFile(
            path=name, why=f"declares a header of {length:,} bytes, the file has {file_bytes:,}", offset=0
        )
    return int(length)


def parse_safetensors_header(raw: bytes, *, name: str, file_bytes: int | None) -> tuple[SafetensorsTensor, ...]:
    """The tensors of a header's JSON, in the order of their data."""
    header = parse_json_object(raw, name=name, max_bytes=MAX_HEADER_BYTES)
    found: list[tuple[int, int, SafetensorsTensor]] = []
    for key, value in header.items():
        if key == "__metadata__":
            continue
        found.append(_tensor(key, value, name))
    found.sort(key=lambda item: item[:2])
    expected = 0
    for begin, end, tensor in found:
        if begin != expected:
            what = "overlaps the tensor before" if begin < expected else "leaves a gap"
            _fail(name, tensor.name, f"its data at {begin:,} {what}: {expected:,} expected")
        expected = end
    if file_bytes is not None and 8 + len(raw) + expected != file_bytes:
        why = f"the tensors end at byte {8 + len(raw) + expected:,}, the file has {file_bytes:,} (is it truncated?)"
        raise BadModelFile(path=name, why=why)
    return tuple(tensor for _, _, tensor in found)


def _tensor(key: str, value: object, name: str) -> tuple[int, int, SafetensorsTensor]:
    if not key or not key.isprintable() or len(key) > 1024:
        raise BadModelFile(
            path=name, why=f"tensor {key[:80]!r}: a name that is empty, too long or has control characters"
        )
    if not isinstance(value, dict):
        _fail(name, key, "is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        _fail(name, key, f"has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > 8:
        _fail(name, key, "its shape is not a list of counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        _fail(name, key, "its data_offsets are not two offsets")
    n_bits = bits
    for dim in shape:
        n_bits *= dim
    if n_bits % 8 or n_bits >= 2**63:
        _fail(name, key, f"the impossible shape {tuple(shape)}")
    if offsets[1] - offsets[0] != n_bits // 8:
        _fail(
            name, key, f"its data_offsets span {offsets[1] - offsets[0]:,} bytes, {dtype} {shape} takes {n_bits // 8:,}"
        )
    return offsets[0], offsets[1], SafetensorsTensor(name=key, dtype=str(dtype), shape=tuple(shape))


def _are_counts(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110  twice as fast as all(), and this runs 200,000 times for a large model
        if type(item) is not int or not 0 <= item < 2**63:
            return False
    return True


def _fail(name: str, tensor: str, why: str) -> NoReturn:
    raise BadModelFile(path=name, why=f"tensor {tensor!r}: {why}")


def parse_json_object(raw: bytes, *, name: str, max_bytes: int) -> dict[str, object]:
    """A JSON object from a file that somebody else wrote. Raises BadModelFile: too large, too nested, too many
    parts, a key twice, not UTF-8, not JSON, not an object."""
    if len(raw) > max_bytes:
        raise BadModelFile(path=name, why=f"has {len(raw):,} bytes of JSON, more than {max_bytes >> 20} MiB")
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise BadModelFile(path=name, why=f"has more than {MAX_CONTAINERS:,} objects and arrays")
    try:
        value = json.loads(str(raw, "utf-8-sig"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise BadModelFile(path=name, why="is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadModelFile(path=name, why="is not UTF-8", offset=error.start) from None
    except json.JSONDecodeError as error:
        raise BadModelFile(path=name, why=f"is not JSON: {error.msg}", offset=error.pos) from None
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise BadModelFile(path=name, why=f"is not good JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadModelFile(path=name, why="is not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} is there twice")
    return built
