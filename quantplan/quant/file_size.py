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


def header_bytes(
    tensors: Sequence[TensorFacts], metadata: Mapping[str, object], *, kv_bytes: int, alignment: int = 32
) -> int:
    """Bytes before the tensor data: fixed part, key-values, tensor infos, padded."""
    infos = sum(8 + len(t.name.encode()) + 4 + 8 * n_dims(t.shape) + 4 + 8 for t in tensors)
    return pad(_FIXED_BYTES + kv_bytes_after(metadata, kv_bytes=kv_bytes) + infos, alignment)
