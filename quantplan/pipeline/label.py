"""What a GGUF's label promises, held against what the file holds: the type of every tensor, and the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.results import Finding, Severity
from quantplan.ggml_types import ggml_types
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.quant.presets import CHANGED_BY_IMATRIX, PRESETS, PresetRefused, PresetResult, apply_preset
from quantplan.units import format_size

_UNLIKE_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCheck:
    """`promised_bytes` is None where the label is no preset of llama-quantize (UD-…, own mixtures)."""

    label: str
    tensor_bytes: int
    promised_bytes: int | None
    n_unlike: int
    bits_per_weight: float
    findings: tuple[Finding, ...]


def check_label(facts: ModelFacts, label: str, *, file: str) -> LabelCheck:
    """The file's tensors against the recipe of its label, made from a 16-bit file of the same shapes."""
    total = sum(_bytes(tensor) for tensor in facts.tensors)
    bits = 8 * total / facts.parameters if facts.parameters else 0.0
    own = _own_preset(facts)
    if label not in PRESETS:
        text = (
            f"{label} is no preset of llama-quantize: there is nothing exact to hold it to ({bits:.2f} bits a weight)"
        )
        note = Finding(rule="label/unknown", severity=Severity.NOTE, message=text, file=file)
        return LabelCheck(
            label=label, tensor_bytes=total, promised_bytes=None, n_unlike=0, bits_per_weight=bits, findings=(note,)
        )
    promised = _nearest(facts, label)
    if promised is None:
        return LabelCheck(
            label=label, tensor_bytes=total, promised_bytes=None, n_unlike=0, bits_per_weight=bits, findings=()
        )
    unlike = _unlike(facts.tensors, promised.tensors)
    findings = list(_findings(unlike, promised, total, label=label, bits=bits, file=file))
    if own is not None and own != PRESETS[label].file_type:
        text = f"its name says {label}, its general.file_type says {own}"
        findings.append(Finding(rule="label/file-type", severity=Severity.WARNING, message=text, file=file))
    return LabelCheck(
        label=label, tensor_bytes=total, promised_bytes=promised.tensor_bytes, n_unlike=len(unlike),
        bits_per_weight=bits, findings=tuple(findings),
    )  # fmt: skip


def _own_preset(facts: ModelFacts) -> str | None:
    number = facts.metadata.get("general.file_type")
    return next((p.file_type for p in PRESETS.values() if p.file_type_id == number), None)


def as_16_bit(tensors: Sequence[TensorFacts]) -> tuple[TensorFacts, ...]:
    """The same tensors before they were quantized: what is F32 was F32."""
    return tuple(
        tensor
        if tensor.type_name in ("F32", "F16", "BF16")
        else TensorFacts(name=tensor.name, shape=tensor.shape, type_name="BF16")
        for tensor in tensors
    )


def _nearest(facts: ModelFacts, label: str) -> PresetResult | None:
    """The recipe with or without an imatrix, whichever is closer: the file does not always tell."""
    found = []
    for with_imatrix in (False, True) if label in CHANGED_BY_IMATRIX else (False,):
        try:
            found.append(apply_preset(as_16_bit(facts.tensors), facts.metadata, label, with_imatrix=with_imatrix))
        except PresetRefused:
            continue
    return min(found, key=lambda result: len(_unlike(facts.tensors, result.tensors)), default=None)


def _unlike(
    have: Sequence[TensorFacts], promised: Sequence[TensorFacts]
) -> tuple[tuple[TensorFacts, TensorFacts], ...]:
    """Tensors of another type than promised. F16 and BF16 count as the same: sources differ."""
    wanted = {tensor.name: tensor for tensor in promised}
    plain = {"F16": "BF16", "F32": "BF16"}
    return tuple(
        (tensor, wanted[tensor.name])
        for tensor in have
        if plain.get(tensor.type_name, tensor.type_name)
        != plain.get(wanted[tensor.name].type_name, wanted[tensor.name].type_name)
    )


def _findings(
    unlike: Sequence[tuple[TensorFacts, TensorFacts]], promised: PresetResult, total: int, *, label: str, bits: float,
    file: str,
) -> Sequence[Finding]:  # fmt: skip
    if not unlike:
        return ()
    kinds = Counter((one.type_name, other.type_name) for one, other in unlike)
    told = ", ".join(f"{n} {have} for {want}" for (have, want), n in kinds.most_common(_UNLIKE_SHOWN))
    lower = [have.name for have, want in unlike if _bytes(have) < _bytes(want)]
    size = f"{format_size(total)} against {format_size(promised.tensor_bytes)}, {bits:.2f} bits a weight"
    if lower:
        text = f"{len(lower)} tensors have fewer bits than {label} promises ({told}; {size}): {', '.join(lower[:2])}"
        return (Finding(rule="label/fewer-bits", severity=Severity.WARNING, message=text, file=file,
                        help="another label would be honest; its gate result says what it is worth"),)  # fmt: skip
    text = f"{len(unlike)} tensors have more bits than {label} gives them ({told}; {size})"
    return (Finding(rule="label/more-bits", severity=Severity.NOTE, message=text, file=file),)


def _bytes(tensor: TensorFacts) -> int:
    row = tensor.shape[0] if tensor.shape else 1
    return ggml_types()[tensor.type_name].row_bytes(row) * (tensor.n_elements // row if row else 0)
