"""The tensors of a checkpoint put to the rows of its family: real names, real shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.layout import OUTTYPE, Row, Shape
from quantplan.model.hf.quantized import Stored, read_quantized

Placed = tuple[str, Shape, str | None]

_DTYPE_BITS = {
    "BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "U16": 16, "U32": 32, "U64": 64,
}  # fmt: skip


class SafetensorsTensor(Protocol):
    """One entry of a safetensors header: the shape in PyTorch's order, the dtype as written there."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def n_elements(tensor: SafetensorsTensor) -> int:
    return prod(tensor.shape)


def n_bytes(tensor: SafetensorsTensor) -> int:
    return -(-n_elements(tensor) * _DTYPE_BITS.get(tensor.dtype, 16) // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """GGUF tensors as (name, shape, type or None for the outtype's), and what of the checkpoint went elsewhere."""

    tensors: tuple[tuple[str, Shape, str | None], ...]
    vision_bytes: int | None = None
    vision_parameters: int | None = None
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# conversion/base.py (commit 0c1e570), TextModel.filter_tensors(): what belongs to an mmproj file
_OTHER_STARTS = (
    "mlp", "vit.", "vpm.", "siglip2.", "conformer.", "merger.", "resampler.", "sound_encoder.", "sound_projection.",
    "speech_embeddings.",
)  # fmt: skip
_OTHER_PARTS = (
    "visual.", "vision.", "audio.", "talker.", "vision_", "audio_", "token2wav.", "code2wav.", "projector.",
    "pre_mm_projector_norm", "image_newline", "view_seperator", "patch_embed", "patch_embedding", "patch_merger.",
    "patch_merge_mlp.", "model.connector.",
)  # fmt: skip
# prepare_tensors(): never needed
_UNUSED_ENDS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
_UNUSED_PARTS = ("cls.predictions", "cls.seq_relationship", "pooler.dense", "embeddings.position_ids", ".mlp.act_fn.")


def is_other_modality(name: str) -> bool:
    return name.startswith(_OTHER_STARTS) or any(part in name for part in _OTHER_PARTS)


def normal_name(name: str) -> str:
    """ModelBase.filter_tensors()."""
    if name.endswith("e_score_correction_bias"):
        name = name.removesuffix("e_score_correction_bias") + "e_score_correction.bias"
    return _unprefixed(name.replace("language_model.", ""))


# prefixes that single model classes take away in their filter_tensors(), and what BERT calls its norms in old files
_PREFIXES = ("bert.", "thinker.")
_OLD_ENDS = ((".gamma", ".weight"), (".beta", ".bias"))


def _unprefixed(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _OLD_ENDS:
        if name.endswith(f"LayerNorm{old}"):
            name = name.removesuffix(old) + new
    if "ernie." in name:
        name = name.replace("ernie.", "model.")
    return name.replace("text_model.", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The language model's weights of a checkpoint under the converter's names, and what goes to an mmproj file."""

    weights: dict[str, Stored]
    vision_bytes: int
    vision_parameters: int


def gather(tensors: Sequence[SafetensorsTensor]) -> Gathered:
    here: dict[str, Stored] = {}
    vision_bytes = vision_parameters = 0
    for tensor in tensors:
        if is_other_modality(tensor.name):
            vision_bytes += n_bytes(tensor)
            vision_parameters += n_elements(tensor)
        elif not (tensor.name.endswith(_UNUSED_ENDS) or any(part in tensor.name for part in _UNUSED_PARTS)):
            here[normal_name(tensor.name)] = Stored(tensor.shape, dtype=tensor.dtype)
    return Gathered(weights=here, vision_bytes=vision_bytes, vision_parameters=vision_parameters)


def match(rows: Sequence[Row], gathered: Gathered, *, config: HfConfig) -> Matched:
    """Each row with its sources in the checkpoint; what is left over is named in a warning.

    Raises UnsupportedQuantization for a checkpoint in a form that the converter does not read.
    """
    here = gathered.weights
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        read_quantized(here, quantization)
    out, used, missing = _place(rows, here)
    left = [name for name in here if name not in used]
    return Matched(
        tensors=tuple(out),
        vision_bytes=gathered.vision_bytes,
        vision_parameters=gathered.vision_parameters,
        dropped=tuple(left),
        warnings=(
            *_told("the checkpoint lacks", missing),
            *_told("in the checkpoint that the GGUF has no place for:", left),
        ),
    )


def _place(rows: Sequence[Row], here: Mapping[str, Stored]) -> tuple[list[Placed], set[str], list[str]]:
    """GGUF tensors, the names used for them, and the rows that should be there and are not."""
    out: list[Placed] = []
    used: set[str] = set()
    missing: list[str] = []
    for row in rows:
        names = _sources(row, here)
        if names is None:
            if row.expected and row.sources:
                missing.append(row.name)
            elif row.expected:
                out.append((row.name, row.shape, None))
            continue
        used.update(names)
        kind = _kept(names, here) or (OUTTYPE if row.kind == OUTTYPE else None)
        if names[0].endswith("_blocks"):
            used.update(name.removesuffix("_blocks") + "_scales" for name in names)
        out.append((row.name, _shape(row, names, here), kind))
        scales = here[names[0]].scales if kind == "NVFP4" else ()
        n_scales = row.shape[2] if len(row.shape) > 2 else 1
        out += [(row.name.removesuffix(".weight") + suffix, (n_scales,), "F32") for suffix in scales]
    return out, used, missing


def _kept(names: Sequence[str], here: Mapping[str, Stored]) -> str | None:
    if names[0].endswith("_blocks"):
        return "MXFP4"  # gpt-oss: blocks of experts
    kinds = {here[name].kind for name in names}
    return kinds.pop() if len(kinds) == 1 else None


def _told(what: str, names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"{len(names)} tensors {what} {', '.join(names[:3])}{more}",)


def _sources(row: Row, here: Mapping[str, Stored]) -> list[str] | None:
    """The first alternative that is there as a whole."""
    for group in row.sources:
        if group[0].name.replace("{x}", "0") not in here:
            continue
        if sum(source.n for source in group) > len(here):
            continue
        names = [name for source in group for name in source.names()]
        if all(name in here for name in names):
            return names
    return None


def _shape(row: Row, names: list[str], here: Mapping[str, Stored]) -> Shape:
    """The checkpoint's shape where the row is one of its tensors as it is, else the family's."""
    actual = here[names[0]].shape
    if row.whole and len(names) == 1 and len(actual) == len(row.shape):
        return tuple(reversed(actual))
    return row.shape
