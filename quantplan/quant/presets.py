"""Quantization presets as the recipes they are: the type of every tensor, and so the exact bytes.

The pinned build's src/llama-quant.cpp (commit 0c1e570) in arithmetic: which tensors are quantized
(tensor_allows_quantization), which type each gets (`mixtures`), and what happens to rows that do not fill the
blocks (tensor_type_fallback). `llama-quantize --dry-run` says the same to the byte; the tests ask it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from quantplan.errors import BadValue
from quantplan.ggml_types import ggml_types
from quantplan.model.facts import TensorFacts
from quantplan.quant.file_size import header_bytes
from quantplan.quant.hparams import shape_of
from quantplan.quant.mixtures import ATTN_V_LIKE, Asked, Category, Counters, Shape, category_of, mixture
from quantplan.quant.never import is_quantizable
from quantplan.quant.preset_table import ALIASES, PRESETS, Preset, preset_named
from quantplan.units import pad

__all__ = [
    "ALIASES",
    "CHANGED_BY_IMATRIX",
    "PRESETS",
    "Preset",
    "PresetRefused",
    "PresetResult",
    "apply_preset",
    "preset_named",
]

ALIGNMENT_BYTES = 32  # GGUF_DEFAULT_ALIGNMENT, ggml/include/gguf.h: llama-quantize writes with no other


_UNQUANTIZED = frozenset({"F32", "F16", "BF16"})  # not ggml_is_quantized()
# tensor_type_fallback(): what takes the place of a type whose blocks the rows do not fill
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# File types whose rules in llama_tensor_get_type_impl() look at has_imatrix.
CHANGED_BY_IMATRIX = frozenset({"Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS"})
# tensor_requires_imatrix()
_NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


class PresetRefused(BadValue):
    """llama-quantize itself stops: it knows no type for a tensor of this shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetResult:
    """A model in one preset. `tensors` are in the engine's order: by layer, then by name."""

    preset: str
    tensors: tuple[TensorFacts, ...]
    tensor_bytes: int
    padded_tensor_bytes: int  # each tensor padded to the file's alignment, as in the file
    tensor_types: Mapping[str, int]  # how many tensors of each type
    n_elements: int
    needs_imatrix: bool
    fallbacks: tuple[str, ...] = ()  # tensors whose rows do not fill the blocks of the type they should have had
    requantized: tuple[str, ...] = ()  # already quantized in the source: llama-quantize refuses without a flag
    file_bytes: int | None = None

    @property
    def bits_per_weight(self) -> float:
        return self.tensor_bytes * 8 / self.n_elements if self.n_elements else 0.0

    def to_json(self) -> dict[str, object]:
        return {
            "tensor_bytes": self.tensor_bytes,
            "file_bytes": self.file_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "tensor_types": dict(self.tensor_types),
            "needs_imatrix": self.needs_imatrix,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What a user may set over a recipe. Types are names of ggml types; the first pattern found in a name wins."""

    pure: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()  # (regular expression, type)
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False


def apply_preset(
    tensors: Sequence[TensorFacts],
    metadata: Mapping[str, object],
    preset: str,
    *,
    with_imatrix: bool = False,
    pure: bool = False,
    tensor_type_overrides: Sequence[tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    kv_bytes: int | None = None,
) -> PresetResult:
    """The type of every tensor and the bytes of the whole, as llama-quantize would write them from this source.

    kv_bytes is the length of the source's key-value section, where it is known: then file_bytes is exact.
    Raises BadValue for an unknown preset or type, PresetRefused where the engine has no type for a shape.
    """
    chosen = preset_named(preset)
    overrides = Overrides(
        pure=pure,
        tensor_types=tuple(tensor_type_overrides),
        output_type=output_tensor_type,
        embedding_type=token_embedding_type,
        leave_output=leave_output_tensor,
    )
    source = _survey(tuple(tensors), str(metadata.get("general.architecture", "")), leave_output_tensor)
    run = _Run(preset=chosen, overrides=overrides, source=source, shape=shape_of(metadata), with_imatrix=with_imatrix)
    types = [run.type_of(row) for row in source.rows]
    return _result(run, types, metadata, kv_bytes)


@dataclass(frozen=True, slots=True)
class _Row:
    """One tensor of the source, seen once for all presets."""

    tensor: TensorFacts
    category: Category
    layer: int | None
    quantizable: bool


@dataclass(frozen=True, slots=True)
class _Source:
    rows: tuple[_Row, ...]
    n_attention_wv: int
    tied: bool
    n_elements: int


_LAYER = re.compile(r"blk\.(\d+)\.")


@lru_cache(maxsize=16)
def _survey(tensors: tuple[TensorFacts, ...], arch: str, leave_output: bool) -> _Source:
    """weight_name_comparer's order, and init_quantize_state_counters()."""

    def row(tensor: TensorFacts) -> _Row:
        match = _LAYER.match(tensor.name)
        allowed = is_quantizable(tensor, arch=arch) and not (leave_output and tensor.name == "output.weight")
        return _Row(tensor, category_of(tensor.name), int(match[1]) if match else None, allowed)

    rows = [row(tensor) for tensor in tensors]
    rows.sort(key=lambda r: (-1 if r.layer is None else r.layer, r.tensor.name))
    n_wv = sum(r.category in ATTN_V_LIKE for r in rows)
    tied = all(r.category is not Category.OUTPUT for r in rows)
    return _Source(tuple(rows), n_wv, tied, sum(tensor.n_elements for tensor in tensors))


@dataclass(slots=True, kw_only=True)
class _Run:
    """One pass over the tensors in the engine's order."""

    preset: Preset
    overrides: Overrides
    source: _Source
    shape: Shape
    with_imatrix: bool
    fallbacks: list[str] = field(default_factory=list)
    counters: Counters = field(init=False)
    patterns: list[tuple[re.Pattern[str], str]] = field(init=False)

    def __post_init__(self) -> None:
        self.counters = Counters(
            shape=self.shape,
            with_imatrix=self.with_imatrix,
            tied=self.source.tied,
            n_attention_wv=self.source.n_attention_wv,
        )
        # tools/quantize/quantize.cpp, parse_tensor_type(): the pattern is lowered
        self.patterns = [(re.compile(p.lower()), known_type(t)) for p, t in self.overrides.tensor_types]

    def type_of(self, row: _Row) -> str:
        """llama_tensor_get_type()."""
        tensor, chosen = row.tensor, self.overrides
        if not row.quantizable:
            return tensor.type_name
        named = (
            next((kind for pattern, kind in self.patterns if pattern.search(tensor.name)), None)
            if (self.patterns)
            else None
        )
        if chosen.embedding_type and row.category is Category.TOKEN_EMBD:
            per_layer = tensor.name == "per_layer_token_embd.weight"
            if not (per_layer and named):
                return known_type(chosen.embedding_type)
        if chosen.output_type and row.category is Category.OUTPUT:
            return known_type(chosen.output_type)
        default = self.preset.default_type
        if default in _UNQUANTIZED:
            return default
        wanted = named or (default if chosen.pure else mixture(self.counters, self._asked(row)))
        return self._fallback(tensor, wanted)

    def _asked(self, row: _Row) -> Asked:
        shape, default = row.tensor.shape, self.preset.default_type
        return Asked(
            name=row.tensor.name,
            category=row.category,
            layer=row.layer,
            ne0=shape[0],
            ne2=shape[2] if len(shape) > 2 else 1,
            file_type=self.preset.file_type,
            default=default,
            default_block=ggml_types()[default].block_size,
            output_type=known_type(self.overrides.output_type) if self.overrides.output_type else None,
        )

    def _fallback(self, tensor: TensorFacts, wanted: str) -> str:
        """tensor_type_fallback()."""
        types, n = ggml_types(), tensor.shape[0]
        block = types[wanted].block_size
        if n % block == 0:
            return wanted
        self.fallbacks.append(tensor.name)
        second = _FALLBACK.get(wanted)
        if second is None and block > 32:
            raise PresetRefused(
                what="preset",
                value=self.preset.name,
                why=f"has no type for {tensor.name}: its rows of {n} fill no {wanted} blocks of {block}",
            )
        return "F16" if second is None or n % types[second].block_size else second


def known_type(name: str) -> str:
    """The ggml type of that name, in any case. Raises BadValue."""
    types = ggml_types()
    upper = name.upper()
    if upper not in types:
        raise BadValue(what="tensor type", value=name, why="is no ggml type")
    return upper


def _result(run: _Run, types: list[str], metadata: Mapping[str, object], kv_bytes: int | None) -> PresetResult:
    out: list[TensorFacts] = []
    total = padded = 0
    needs = False
    requantized: list[str] = []
    known: dict[tuple[tuple[int, ...], str], int] = {}  # a model has few shapes
    for row, kind in zip(run.source.rows, types, strict=True):
        tensor = row.tensor
        n_bytes = known.get((tensor.shape, kind))
        if n_bytes is None:
            n_bytes = known[tensor.shape, kind] = _bytes(tensor, kind)
        total, padded = total + n_bytes, padded + pad(n_bytes, ALIGNMENT_BYTES)
        needs = needs or (row.quantizable and _requires_imatrix(row, kind, run.preset.file_type))
        if kind != tensor.type_name:
            if tensor.type_name not in _UNQUANTIZED:
                requantized.append(tensor.name)
            tensor = TensorFacts(name=tensor.name, shape=tensor.shape, type_name=kind)
        out.append(tensor)
    header = None if kv_bytes is None else header_bytes(out, metadata, kv_bytes=kv_bytes)
    return PresetResult(
        preset=run.preset.name,
        tensors=tuple(out),
        tensor_bytes=total,
        padded_tensor_bytes=padded,
        tensor_types=dict(sorted(Counter(types).items())),
        n_elements=run.source.n_elements,
        needs_imatrix=needs,
        fallbacks=tuple(run.fallbacks),
        requantized=tuple(requantized),
        file_bytes=None if header is None else header + padded,
    )


def _bytes(tensor: TensorFacts, kind: str) -> int:
    row = tensor.shape[0]
    return ggml_types()[kind].row_bytes(row) * (tensor.n_elements // row) if row else 0


def _requires_imatrix(row: _Row, kind: str, file_type: str) -> bool:
    """tensor_requires_imatrix()."""
    if row.category in (Category.TOKEN_EMBD, Category.OUTPUT):
        return False
    return kind in _NEEDS_IMATRIX or (kind == "Q2_K" and file_type == "Q2_K_S")
