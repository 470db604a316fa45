"""The GGUF header that the pinned converter would write for a Hugging Face model: metadata and every tensor.

convert_hf_to_gguf.py and conversion/ of llama.cpp at commit 0c1e570, in arithmetic: nothing of torch, no weights.
From a configuration alone the tensors are derived; with the safetensors headers they are the checkpoint's own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan.errors import BadConfig, UnsupportedArchitecture, UnsupportedQuantization
from quantplan.model.facts import TensorFacts
from quantplan.model.hf.checkpoint import Matched, SafetensorsTensor, gather, match
from quantplan.model.hf.config import HfConfig, text_part
from quantplan.model.hf.families import Family, families
from quantplan.model.hf.layout import Layout, Row
from quantplan.model.hf.metadata import FILE_TYPE_IDS, base_metadata
from quantplan.model.hf.quantized import FILE_TYPE_IDS as KEPT_IDS
from quantplan.model.hf.quantized import kept_type
from quantplan.model.hf.types import converted_type

__all__ = ["BadConfig", "ConvertedHeader", "SafetensorsTensor", "architecture_of", "header_from_config", "supported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedHeader:
    """What the language model's GGUF would hold. `metadata` has no tokenizer but the size of the vocabulary."""

    metadata: Mapping[str, object]
    tensors: tuple[TensorFacts, ...]
    derived: bool  # tensors are of the configuration, not of the checkpoint
    vision_bytes: int | None = None  # the checkpoint's tensors that go to an mmproj file; None where not counted
    vision_parameters: int | None = None
    dropped: tuple[str, ...] = ()  # tensors of the checkpoint that the converter leaves out
    warnings: tuple[str, ...] = ()


# conversion/base.py (commit 0c1e570), get_model_architecture(): named at the top although the text part names one too
_TOP_WINS = (
    "StepVLForConditionalGeneration",
    "Sarashina2VisionForCausalLM",
    "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
)


def architecture_of(config: Mapping[str, object]) -> str:
    """The name that the converter chooses the model class by. Raises BadConfig where there is none."""
    named = _first_name(config.get("architectures"))
    if named in _TOP_WINS:
        return named
    text = text_part(config)
    inner = _first_name(text.get("architectures")) if text else ""
    if inner or named:
        return inner or named
    raise BadConfig(key="architectures", why="names no architecture")


def _first_name(value: object) -> str:
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else ""
    return first if isinstance(first, str) else ""


def supported() -> tuple[str, ...]:
    """Architectures whose header we derive exactly."""
    return tuple(sorted(families()))


def header_from_config(
    config: Mapping[str, object],
    *,
    tensors: Sequence[SafetensorsTensor] | None = None,
    outtype: str = "bf16",
    path: str = "config.json",
) -> ConvertedHeader:
    """Metadata and tensors of the converted model.

    Raises UnsupportedArchitecture for one that has no table, UnsupportedQuantization for a checkpoint that the
    converter does not read, BadConfig where a field lacks or cannot be right.
    """
    architecture = architecture_of(config)
    family = families().get(architecture)
    if family is None:
        raise UnsupportedArchitecture(architecture=architecture, path=path, supported=supported())
    try:
        return _header(config, family, tensors=tensors, outtype=outtype, architecture=architecture)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        # a configuration is somebody else's input: whatever is in the wrong form ends here, not in a trace
        raise BadConfig(key=architecture, why=f"has a value that cannot be read: {str(error)[:120]}") from error


def _header(
    config: Mapping[str, object],
    family: Family,
    *,
    tensors: Sequence[SafetensorsTensor] | None,
    outtype: str,
    architecture: str,
) -> ConvertedHeader:
    fields = HfConfig(config)
    gathered = None if tensors is None else gather(tensors)
    if gathered is not None and family.read:
        family.read(fields, gathered.weights)
    n_block = family.n_block(fields)
    if not 0 < n_block <= 4096:
        raise BadConfig(key="num_hidden_layers", why=f"is out of range: {n_block}")
    layout = Layout(fields, n_block=n_block)
    family.tensors(fields, layout)
    quantization = fields.get("quantization_config")
    kept = kept_type(quantization) if isinstance(quantization, Mapping) else None
    if kept == "MXFP4" and family.arch != "gpt-oss":
        raise UnsupportedQuantization(method="mxfp4", why=f"only that of gpt-oss, not of {architecture}")
    matched = _derived(layout, kept) if gathered is None else match(layout.rows, gathered, config=fields)
    md = base_metadata(fields, family.arch_of(fields) if family.arch_of else family.arch, n_block=n_block)
    family.metadata(fields, md)
    md.values.setdefault("general.file_type", KEPT_IDS[kept] if kept else FILE_TYPE_IDS[outtype])
    md.values.setdefault(f"{md.arch}.vocab_size", fields.n("vocab_size", default=0))
    md.values["tokenizer.ggml.model"] = "no_vocab"
    return ConvertedHeader(
        metadata=md.values,
        tensors=tuple(
            TensorFacts(name=name, shape=shape, type_name=converted_type(name, len(shape), outtype, kind))
            for name, shape, kind in matched.tensors
        ),
        derived=tensors is None,
        vision_bytes=matched.vision_bytes,
        vision_parameters=matched.vision_parameters,
        dropped=matched.dropped,
        warnings=(*fields.warnings, *matched.warnings),
    )


def _derived(layout: Layout, kept: str | None) -> Matched:
    """All rows that the configuration speaks of; a quantized checkpoint's experts stay MXFP4."""

    def kind(row: Row) -> str | None:
        packed = any(group[0].name.endswith("_blocks") for group in row.sources)
        return "MXFP4" if packed and kept == "MXFP4" else row.kind

    warnings: tuple[str, ...] = ()
    if kept == "NVFP4":
        warnings = ("which tensors are NVFP4 is not in the configuration: all are taken for 16 bit",)
    tensors = tuple((row.name, row.shape, kind(row)) for row in layout.rows if row.expected)
    return Matched(tensors=tensors, warnings=warnings)
