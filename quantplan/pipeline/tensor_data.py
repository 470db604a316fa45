"""A look at the numbers themselves: block scales and floats that are not finite. Reads the whole file once, in slices.

Where the scales lie in a block is ggml/src/ggml-common.h of the pinned build; every type of the table is tested
against it by writing one. Types without a float scale (MXFP4's is an exponent byte, whose 255 is not a number) and
integers are covered by their own rule; an unknown type is told, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.ggml_types import ggml_types
from quantplan.model.gguf_header import GgufHeader, GgufTensor, read_gguf_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SLICE_BYTES = 16 * 1024**2

# type -> byte offsets of its half-precision scales (ggml_half d, m, dmin, s)
HALF_SCALES: Mapping[str, tuple[int, ...]] = {
    "Q1_0": (0,), "Q2_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q4_1": (0, 2), "Q5_1": (0, 2), "Q8_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q2_K": (80, 82),  # after scales[16] and qs[64]
    "Q3_K": (108,),  # after hmask[32], qs[64], scales[12]
    "Q6_K": (208,),  # after ql[128], qh[64], scales[16]
    "TQ1_0": (52,),  # after qs[48] and qh[4]
    "TQ2_0": (64,),  # after qs[64]
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
}  # fmt: skip
EXPONENT_SCALES: Mapping[str, tuple[int, ...]] = {"MXFP4": (0,)}  # E8M0: 255 is not a number
UE4M3_SCALES: Mapping[str, tuple[int, ...]] = {"NVFP4": (0, 1, 2, 3)}  # 0x7f is not a number
FLOATS = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}
INTEGERS = ("I8", "I16", "I32", "I64")
IQ1_M_SCALE = 48  # block_iq1_m: qs[32], qh[16], then scales[8]: the half's 16 bits are their top nibbles


@dataclass(frozen=True, slots=True, kw_only=True)
class BadTensor:
    """A tensor with scales or values that are not finite; `first_offset` is in its file. `n_bad` is None where the
    type is unknown to this check."""

    tensor: str
    type_name: str
    n_bad: int | None
    first_offset: int | None
    shard: int = 0


def not_finite(path: Path, header: GgufHeader | None = None) -> tuple[BadTensor, ...]:
    """Every tensor with a NaN or an infinity where the engine reads a float, in file order. Raises BadModelFile for
    what is no GGUF."""
    found = []
    told = header or read_gguf_header(path)
    for tensor in told.tensors:
        shard = told.shards[tensor.shard] if told.shards else None
        file = path.parent / Path(shard.path).name if shard else path
        start = (shard.data_offset if shard else told.data_offset) + tensor.offset
        bad = check_tensor(file, tensor, start)
        if bad is not None:
            found.append(bad)
    return tuple(found)


def check_tensor(file: Path, tensor: GgufTensor, start: int) -> BadTensor | None:
    """One tensor, whose data starts at that byte of the file; None where it is sound."""
    import numpy as np

    if tensor.type_name in INTEGERS:
        return None
    n_bad, first = 0, None
    try:
        for offset, wrong in _blocks(file, tensor, start):
            n_bad += int(wrong.sum())
            if first is None and wrong.any():
                first = offset + int(np.argmax(wrong)) * _unit(tensor.type_name)
    except KeyError:
        return BadTensor(
            tensor=tensor.name, type_name=tensor.type_name, n_bad=None, first_offset=start, shard=tensor.shard
        )
    if not n_bad:
        return None
    return BadTensor(
        tensor=tensor.name, type_name=tensor.type_name, n_bad=n_bad, first_offset=first, shard=tensor.shard
    )


def _unit(type_name: str) -> int:
    return ggml_types()[type_name].type_size


def _blocks(file: Path, tensor: GgufTensor, start: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(offset of a slice, which of its blocks are not finite). Raises KeyError for a type that is not in the tables."""
    import numpy as np

    unit = _unit(tensor.type_name)
    _wrong(tensor.type_name, np.zeros((1, unit), np.uint8))  # a type that is unknown is told before any reading
    at_once = max(1, _SLICE_BYTES // unit)
    left, offset = tensor.n_bytes // unit, start
    with file.open("rb") as data:
        data.seek(start)
        while left:
            n = min(at_once, left)
            raw = np.fromfile(data, np.uint8, n * unit).reshape(-1, unit)
            if len(raw) < n:
                raise OSError(f"{file.name}: ends inside tensor {tensor.name}")
            yield offset, _wrong(tensor.type_name, raw)
            left -= n
            offset += n * unit


def _wrong(type_name: str, blocks: NDArray[np.uint8]) -> Any:
    """Of blocks of shape (n, type_size), which have a float that is not finite."""
    import numpy as np

    if type_name in FLOATS:
        return ~np.isfinite(blocks.view(FLOATS[type_name])[:, 0])
    if type_name == "Q8_K":  # float d first
        return ~np.isfinite(np.ascontiguousarray(blocks[:, :4]).view("<f4")[:, 0])
    if type_name == "BF16":
        return (blocks.view("<u2")[:, 0] & 0x7F80) == 0x7F80
    if type_name == "IQ1_M":
        words = np.ascontiguousarray(blocks[:, IQ1_M_SCALE:]).view("<u2") >> 12
        half = words[:, 0] | words[:, 1] << 4 | words[:, 2] << 8 | words[:, 3] << 12
        return (half & 0x7C00) == 0x7C00
    if type_name in EXPONENT_SCALES:
        return (blocks[:, EXPONENT_SCALES[type_name]] == 0xFF).any(axis=1)
    if type_name in UE4M3_SCALES:
        return (blocks[:, UE4M3_SCALES[type_name]] & 0x7F == 0x7F).any(axis=1)
    wrong = np.zeros(len(blocks), np.bool_)
    for at in HALF_SCALES[type_name]:
        half = blocks[:, at].astype(np.uint16) | blocks[:, at + 1].astype(np.uint16) << 8
        wrong |= (half & 0x7C00) == 0x7C00  # all exponent bits: infinity or NaN
    return wrong
