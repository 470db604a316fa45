"""The size of every file of a build, from the facts of its model, before any of them is there."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.ggml_types import ggml_types
from quantplan.llama.commands import TypeOverrides
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.pipeline.disk import BuildSizes
from quantplan.quant.file_size import info_bytes
from quantplan.quant.presets import PresetResult, apply_preset
from quantplan.units import pad

# A token in the key-values: its length (8), text, score (4) and type (4), and for BPE a merge (8 and text).
KV_BYTES_A_TOKEN = 40
_KV_BYTES_REST = 64 * 1024  # the chat template, most of all


def build_sizes(
    facts: ModelFacts, quants: Sequence[str], *, converted_as: str = "BF16", kv_bytes: int | None = None,
    imatrix: bool = False, overrides: TypeOverrides | None = None, logits_bytes: int = 0, mmproj_bytes: int = 0,
    source_bytes: int = 0,
) -> BuildSizes:  # fmt: skip
    """Exact where `kv_bytes`, the length of the key-value section, is known (a conversion of the vocabulary alone
    tells it); else with an upper estimate of that section, some MiB of a real vocabulary.

    Raises BadValue for an unknown preset, PresetRefused where the engine has no type for a shape.
    """
    kv = kv_bytes if kv_bytes is not None else facts.n_vocab * KV_BYTES_A_TOKEN + _KV_BYTES_REST
    sizes = {
        quant: _file_bytes(preset_of(facts, quant, imatrix=imatrix, overrides=overrides, kv_bytes=kv))
        for quant in dict.fromkeys(quants)
        if quant != converted_as
    }
    return BuildSizes(
        converted_bytes=converted_bytes(facts.tensors, converted_as, kv_bytes=kv), quants=sizes,
        logits_bytes=logits_bytes, source_bytes=source_bytes, mmproj_bytes=mmproj_bytes,
        imatrix_bytes=imatrix_bytes(facts.tensors) if imatrix else 0,
    )  # fmt: skip


_FIXED_BYTES = 4 + 4 + 8 + 8  # magic, version, n_tensors, n_kv: gguf_write_out(), ggml/src/gguf.cpp
_ALIGNMENT = 32
# Keys that the converter writes last (prepare_metadata(), conversion/base.py): llama-quantize adds none for them.
_WRITTEN = {"general.quantization_version": 2, "general.file_type": 32}


def converted_bytes(tensors: Sequence[TensorFacts], converted_as: str, *, kv_bytes: int) -> int:
    """The file that the converter writes: matrices in its 16- or 32-bit type, the rest as it is."""
    infos = info_bytes(tensors, trailing_ones=True)
    data = 0
    for tensor in tensors:
        kind = converted_as if tensor.type_name == "BF16" else tensor.type_name
        row = tensor.shape[0] if tensor.shape else 1
        data += pad(ggml_types()[kind].row_bytes(row) * (tensor.n_elements // row if row else 0), _ALIGNMENT)
    return pad(_FIXED_BYTES + kv_bytes + infos, _ALIGNMENT) + data


def preset_of(
    facts: ModelFacts, quant: str, *, imatrix: bool = False, overrides: TypeOverrides | None = None,
    kv_bytes: int | None = None,
) -> PresetResult:  # fmt: skip
    """A model in a preset with what was set over it."""
    types = overrides or TypeOverrides()
    return apply_preset(
        facts.tensors, {**_WRITTEN, **facts.metadata}, quant, with_imatrix=imatrix, pure=types.pure, kv_bytes=kv_bytes,
        tensor_type_overrides=types.tensor_types, output_tensor_type=types.output_type,
        token_embedding_type=types.embedding_type, leave_output_tensor=types.leave_output,
    )  # fmt: skip


def _file_bytes(result: PresetResult) -> int:
    return result.file_bytes if result.file_bytes is not None else result.padded_tensor_bytes


def imatrix_bytes(tensors: Sequence[TensorFacts]) -> int:
    """tools/imatrix/imatrix.cpp, save_imatrix(): a float32 sum a column and a count a matrix, of every matrix of
    the blocks; names and padding are some 200 bytes an entry."""
    total = 0
    for tensor in tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            total += 4 * n_matrices * (tensor.shape[0] + 1) + 200
    return total
