"""What each preset would make of a source: exact bytes, fallbacks, imatrix, or why it cannot be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantplan import errors
from quantplan.ggml_types import ggml_types
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.quant.file_size import info_bytes
from quantplan.quant.presets import PRESETS, PresetRefused, PresetResult, apply_preset
from quantplan.units import pad

MIXTURE_PRESET = "MXFP4_MOE"  # keeps experts that are MXFP4 in the source as they are
_PLAIN = ("F32", "F16", "BF16")
_CONVERTER_KEYS = {"general.quantization_version": 2, "general.file_type": 32}  # in every file that it writes
_FIXED_BYTES = 4 + 4 + 8 + 8
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetCheck:
    """One preset. `n_bytes` is of the file where the key-values are known, else of its tensors."""

    name: str
    n_bytes: int | None
    bits_per_weight: float = 0.0
    tensors: tuple[TensorFacts, ...] = ()
    fallbacks: tuple[str, ...] = ()
    needs_imatrix: bool = False
    error: errors.QuantplanError | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name, "bytes": self.n_bytes, "bits_per_weight": round(self.bits_per_weight, 4),
            "fallbacks": self.fallbacks, "needs_imatrix": self.needs_imatrix,
            "refused": str(self.error) if self.error else None,
        }  # fmt: skip


def check_presets(facts: ModelFacts, names: Sequence[str], *, kv_bytes: int | None) -> tuple[PresetCheck, ...]:
    """BF16 as the converter writes it, and each named preset as llama-quantize makes it from that."""
    wanted = [name for name in dict.fromkeys(names) if name != "BF16"]
    return (_converted(facts, kv_bytes), *(_check(facts, name, kv_bytes) for name in wanted))


def _converted(facts: ModelFacts, kv_bytes: int | None) -> PresetCheck:
    data = sum(pad(_bytes(tensor), _ALIGNMENT) for tensor in facts.tensors)
    header = 0
    if kv_bytes is not None:
        infos = info_bytes(facts.tensors, trailing_ones=True)
        header = pad(_FIXED_BYTES + kv_bytes + infos, _ALIGNMENT)
    bits = 8 * data / facts.parameters if facts.parameters else 0.0
    return PresetCheck(name="BF16", n_bytes=header + data, bits_per_weight=bits, tensors=facts.tensors)


def _bytes(tensor: TensorFacts) -> int:
    row = tensor.shape[0] if tensor.shape else 1
    return ggml_types()[tensor.type_name].row_bytes(row) * (tensor.n_elements // row if row else 0)


def _check(facts: ModelFacts, name: str, kv_bytes: int | None) -> PresetCheck:
    try:
        result = apply_preset(facts.tensors, {**_CONVERTER_KEYS, **facts.metadata}, name, kv_bytes=kv_bytes)
    except PresetRefused as error:
        return PresetCheck(name=name, n_bytes=None, error=error)
    again = _already_quantized(facts, name, result) if result.requantized else None
    size = result.file_bytes if result.file_bytes is not None else result.padded_tensor_bytes
    return PresetCheck(
        name=name, n_bytes=None if again else size, bits_per_weight=result.bits_per_weight, tensors=result.tensors,
        fallbacks=result.fallbacks, needs_imatrix=result.needs_imatrix, error=again,
    )  # fmt: skip


def _already_quantized(facts: ModelFacts, name: str, result: PresetResult) -> errors.AlreadyQuantized:
    again = set(result.requantized)
    kinds = sorted({tensor.type_name for tensor in facts.tensors if tensor.name in again})
    return errors.AlreadyQuantized(
        model=facts.id, preset=name, n_tensors=len(again), kinds=kinds, possible=possible_presets(facts)
    )


def possible_presets(facts: ModelFacts) -> tuple[str, ...]:
    """The presets that quantize nothing again; the mixture that keeps MXFP4 first."""
    found = []
    for name in (MIXTURE_PRESET, *PRESETS):
        try:
            if name not in _PLAIN and not apply_preset(facts.tensors, facts.metadata, name).requantized:
                found.append(name)
        except PresetRefused:
            continue
    return tuple(dict.fromkeys(found))
