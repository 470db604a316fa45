"""Weights by device: which buffer holds each tensor, and how large it is there.

src/llama-model.cpp (load_tensors), llama-model-loader.cpp (create_tensor, get_mapping_range) and
ggml/src/ggml-cpu/repack.cpp of llama.cpp 0c1e570.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quantplan.ggml_types import GgmlType
from quantplan.model.facts import TensorFacts
from quantplan.units import pad

GPU_ALIGN, HOST_ALIGN, FILE_ALIGN = 128, 32, 32  # bytes: ggml-cuda.cu, ggml-backend.cpp, GGUF default alignment
ROW_PADDING = 512  # elements: ggml-cuda/common.cuh, MATRIX_ROW_PADDING
TIED_HEAD = "token_embd.weight#head"  # the embedding again, as the output head

# ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type: rows must divide by 8.
_REPACKED_AVX2 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_AVX512 = frozenset({"Q2_K"})
_REPACK_ROWS = 8


class Part(NamedTuple):
    """One tensor as it will be loaded. `layer` None: before the layers; n_layer: the head. A tuple, because a look at
    the whole catalog makes some hundred thousand of them."""

    name: str
    ne: tuple[int, ...]
    type_name: str
    nbytes: int
    gpu_extra: int  # bytes a GPU buffer adds, so that the last row may be over-read
    layer: int | None
    offset: int  # in the file's data, for the mapped range
    is_duplicate: bool = False
    repack: str = ""  # "avx2", "avx512" or ""


def parts_of(
    tensors: Sequence[TensorFacts], *, n_layer: int, n_skipped: int, types: Mapping[str, GgmlType]
) -> tuple[Part, ...]:
    """Every tensor that the engine loads, in file order; draft (MTP) layers at the end are skipped."""
    parts: list[Part] = []
    offset = 0
    names = {tensor.name for tensor in tensors}
    tied, tied_norm = "output.weight" not in names, "output_norm.weight" not in names
    for tensor in tensors:
        kind = types[tensor.type_name]
        nbytes = tensor.n_elements // kind.block_size * kind.type_size
        layer = _layer_of(tensor.name, n_layer, tied_norm=tied_norm)
        if layer is None or layer >= n_layer or layer < n_layer - n_skipped:
            part = Part(
                name=tensor.name, ne=tensor.shape, type_name=tensor.type_name, nbytes=nbytes,
                gpu_extra=_gpu_extra(tensor, kind), layer=layer, offset=offset, repack=_repack(tensor, layer),
            )  # fmt: skip
            parts.append(part)
            if tensor.name == "token_embd.weight" and tied:
                head = Part(
                    name=TIED_HEAD, ne=tensor.shape, type_name=tensor.type_name, nbytes=nbytes,
                    gpu_extra=part.gpu_extra, layer=n_layer, offset=offset, is_duplicate=True,
                    repack=_repack(tensor, n_layer),
                )  # fmt: skip
                parts.append(head)
        offset += pad(nbytes, FILE_ALIGN)
    return tuple(parts)


def _layer_of(name: str, n_layer: int, *, tied_norm: bool) -> int | None:
    """LLM_TENSOR_INFOS: input tensors stay on the host, output tensors go with the head."""
    if name.startswith("blk."):
        number = name[4 : name.index(".", 4)] if "." in name[4:] else ""
        return int(number) if number.isdigit() else None
    if name.startswith(("output", "cls")) or (tied_norm and name == "token_embd_norm.weight"):
        return n_layer
    if name.startswith("rope_f"):
        return 0
    return None


def _gpu_extra(tensor: TensorFacts, kind: GgmlType) -> int:
    rest = tensor.shape[0] % ROW_PADDING if kind.block_size > 1 else 0
    return (ROW_PADDING - rest) // kind.block_size * kind.type_size if rest else 0


def _repack(tensor: TensorFacts, layer: int | None) -> str:
    """Which CPU feature makes the engine keep an interleaved copy of a matrix."""
    if layer is None or len(tensor.shape) not in (2, 3) or tensor.shape[1] % _REPACK_ROWS:
        return ""
    if len(tensor.shape) == 3 and "_exps" not in tensor.name:
        return ""
    if tensor.type_name in _REPACKED_AVX2:
        return "avx2"
    return "avx512" if tensor.type_name in _REPACKED_AVX512 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of weights by backend (GPUs first, host last), and how the host holds its part."""

    by_backend: tuple[int, ...]
    mapped_bytes: int  # the range of the file that stays mapped (`CPU_Mapped`)
    resident_bytes: int  # what of it is read on every step
    repacked_bytes: int  # interleaved copies (`CPU_REPACK`): anonymous memory
    duplicated_bytes: int = 0  # the embedding once more as the head, both on the host


def weight_bytes(parts: Sequence[Part], backends: Sequence[int], *, n_backends: int, simd: frozenset[str]) -> Weights:
    """Sums the tensors where `backends` puts them. `simd` are the CPU features of a host without GPU."""
    host = n_backends - 1
    sums = [0] * n_backends
    resident = repacked = duplicated = 0
    first, last = -1, 0
    for part, backend in zip(parts, backends, strict=True):
        if backend != host:
            sums[backend] += pad(part.nbytes + part.gpu_extra, GPU_ALIGN)
        elif part.repack and part.repack in simd:
            repacked += pad(part.nbytes, HOST_ALIGN)
        elif not part.is_duplicate:
            resident += pad(part.nbytes, HOST_ALIGN)
            first = part.offset if first < 0 else min(first, part.offset)
            last = max(last, part.offset + part.nbytes)
        else:
            duplicated += pad(part.nbytes, HOST_ALIGN)
    sums[host] = resident
    return Weights(by_backend=tuple(sums), mapped_bytes=max(last - max(first, 0), 0), resident_bytes=resident,
                   repacked_bytes=repacked, duplicated_bytes=duplicated)  # fmt: skip
