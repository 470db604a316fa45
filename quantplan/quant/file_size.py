"""The bytes around the tensors in the file that llama-quantize writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantplan.model.facts import TensorFacts
from quantplan.quant.never import n_dims
from quantplan.units import pad

_FIXED_BYTES = 4 + 4 + 8 + 8  # magic, version, n_tensors, n_kv: gguf_write_out(), ggml/src/gguf.cpp
_U32_VALUE_BYTES = 4 + 4  # type, value
_U16_VALUE_BYTES = 4 + 2
_SET_KEYS = ("general.quantization_version", "general.file_type")  # llama_model_quantize_impl() sets both
_REMOVED_KEYS = {"split.no": _U16_VALUE_BYTES, "split.count": _U16_VALUE_BYTES, "split.tensors.count": _U32_VALUE_BYTES}


def kv_bytes_after(metadata: Mapping[str, object], *, kv_bytes: int) -> int:
    """The length of the key-value section after llama-quantize, without an imatrix."""
    for key in _SET_KEYS:
        if key not in metadata:
            kv_bytes += 8 + len(key) + _U32_VALUE_BYTES
    for key, value_bytes in _REMOVED_KEYS.items():
        if key in metadata:
            kv_bytes -= 8 + len(key) + value_bytes
    return kv_bytes


def info_bytes(tensors: Sequence[TensorFacts], *, trailing_ones: bool) -> int:
    """Bytes of the tensor infos. The engine writes no trailing dimensions of one; converters may."""
    dims = (len(t.shape) if trailing_ones else n_dims(t.shape) for t in tensors)
    return sum(8 + len(t.name.encode()) + 4 + 8 * n + 4 + 8 for t, n in zip(tensors, dims, strict=True))


def source_kv_bytes(
    metadata: Mapping[str, object], tensors: Sequence[TensorFacts], *, data_offset: int, alignment: int = 32
) -> int | None:
    """The key-value section of a GGUF, padding included, of where its data begins.

    Exact for what llama-quantize makes of it only where nothing but types changes; else None.
    """
    infos = info_bytes(tensors, trailing_ones=True)
    changed = infos != info_bytes(tensors, trailing_ones=False) or any(key not in metadata for key in _SET_KEYS)
    if changed or any(key in metadata for key in _REMOVED_KEYS) or metadata.get("general.alignment", 32) != alignment:
        return None
    return data_offset - _FIXED_BYTES - infos


def header_bytes(
    tensors: Sequence[TensorFacts], metadata: Mapping[str, object], *, kv_bytes: int, alignment: int = 32
) -> int:
    """Bytes before the tensor data: fixed part, key-values, tensor infos, padded."""
    infos = info_bytes(tensors, trailing_ones=False)
    return pad(_FIXED_BYTES + kv_bytes_after(metadata, kv_bytes=kv_bytes) + infos, alignment)
