"""Which type a preset gives a tensor: llama.cpp's rules, category by category.

Transcribed from src/llama-quant.cpp of the pinned build (commit 0c1e570); every function names the C++ function or
branch it states. Types and file types carry the engine's names without their prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Category(Enum):
    """enum tensor_category."""

    TOKEN_EMBD = "token_embd"
    ATTENTION_Q = "attn_q"
    ATTENTION_V = "attn_v"
    ATTENTION_K = "attn_k"
    ATTENTION_QKV = "attn_qkv"
    ATTENTION_KV_B = "attn_kv_b"
    ATTENTION_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OUTPUT = "output"
    OTHER = "other"


# tensor_get_category(): the first that is contained in the name wins
_BY_PART = (
    ("attn_qkv.weight", Category.ATTENTION_QKV),
    ("attn_kv_b.weight", Category.ATTENTION_KV_B),
    ("attn_v.weight", Category.ATTENTION_V),
    ("attn_k.weight", Category.ATTENTION_K),
    ("attn_q.weight", Category.ATTENTION_Q),
    ("attn_output.weight", Category.ATTENTION_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)
ATTN_V_LIKE = frozenset({Category.ATTENTION_V, Category.ATTENTION_QKV, Category.ATTENTION_KV_B})  # category_is_attn_v()


def category_of(name: str) -> Category:
    """tensor_get_category()."""
    if name == "output.weight":
        return Category.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Category.TOKEN_EMBD
    return next((category for part, category in _BY_PART if part in name), Category.OTHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the rules look at in the model: hparams of the loaded file."""

    arch: str
    n_layer_all: int  # {arch}.block_count, NextN layers included
    n_gqa: int  # llama_hparams::n_gqa() of layer 0; 0 without KV heads
    n_expert: int
    is_70b: bool  # model.type == LLM_TYPE_70B


@dataclass(slots=True, kw_only=True)
class Counters:
    """quantize_state_impl: how many of a category there are, and how many were seen."""

    shape: Shape
    with_imatrix: bool
    tied: bool  # no output.weight
    n_attention_wv: int
    i_attention_wv: int = 0
    i_ffn_down: int = 0
    i_ffn_gate: int = 0
    i_ffn_up: int = 0


class Asked(NamedTuple):
    """One tensor put to the rules."""

    name: str
    category: Category
    layer: int | None  # blk.N.
    ne0: int
    ne2: int
    file_type: str  # Q4_K_M, IQ2_XXS, …
    default: str  # llama_ftype_get_default_type()
    default_block: int  # ggml_blck_size(default)
    output_type: str | None = None


_VERY_LOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"})


_GLM5_NEXT_Q8 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")  # never below Q8_0


def more_bits(i_layer: int, n_layer: int) -> bool:
    """use_more_bits(): the first and the last eighth of the layers, and every third between."""
    return i_layer < n_layer // 8 or i_layer >= 7 * n_layer // 8 or (i_layer - n_layer // 8) % 3 == 2


def mixture(counters: Counters, asked: Asked) -> str:
    """llama_tensor_get_type_impl(): the type before the fallback for odd shapes. Advances the counters."""
    category, kind = asked.category, asked.file_type
    if counters.shape.arch == "glm5-next" and any(part in asked.name for part in _GLM5_NEXT_Q8):
        return "Q8_0"
    if category is Category.OUTPUT or (counters.tied and category is Category.TOKEN_EMBD):
        return _output(counters.shape, asked)
    if kind == "MXFP4_MOE":
        return _mxfp4_moe(counters.shape, asked)
    if category is Category.TOKEN_EMBD:
        return _TOKEN_EMBD.get(kind, asked.default)
    if kind in _VERY_LOW:
        return _very_low(counters, asked)
    rule = _RULES.get(category)
    return rule(counters, asked) if rule else asked.default


def _output(shape: Shape, asked: Asked) -> str:
    """The branch of OUTPUT, and of TOKEN_EMBD where the embeddings are tied."""
    if asked.output_type:
        return asked.output_type
    if asked.file_type == "MXFP4_MOE" or shape.arch == "falcon" or asked.ne0 % asked.default_block:
        return "Q8_0"
    if asked.file_type in ("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"):
        return "Q5_K"
    return "Q8_0" if asked.default == "Q8_0" else "Q6_K"


def _mxfp4_moe(shape: Shape, asked: Asked) -> str:
    """The branch of LLAMA_FTYPE_MOSTLY_MXFP4_MOE: 3-D tensors are experts, but for MLA projections of BailingMoe 3."""
    expert = asked.category in (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)
    return "MXFP4" if asked.ne2 > 1 and (shape.arch != "bailingmoe3" or expert) else "Q8_0"


_TOKEN_EMBD = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}


def _very_low(counters: Counters, asked: Asked) -> str:
    """The branch of the IQ1 and IQ2 file types."""
    shape, category = counters.shape, asked.category
    raised = "IQ3_S" if asked.file_type in ("IQ2_S", "IQ2_M") else "Q2_K"
    if category in ATTN_V_LIKE:
        counters.i_attention_wv += 1
        return "Q4_K" if shape.n_gqa >= 4 or shape.n_expert >= 4 else raised
    if category is Category.ATTENTION_K and shape.n_expert == 8:
        return "Q4_K"
    if category is Category.FFN_DOWN:
        i_layer, counters.i_ffn_down = counters.i_ffn_down, counters.i_ffn_down + 1
        return raised if i_layer < shape.n_layer_all // 8 else asked.default
    if category is Category.ATTENTION_OUTPUT:
        if shape.n_expert == 8:
            return "Q5_K"
        by_type = {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}
        return by_type.get(asked.file_type, asked.default)
    return asked.default


def _attn_v(counters: Counters, asked: Asked) -> str:
    """The branch of category_is_attn_v()."""
    shape, i_layer = counters.shape, counters.i_attention_wv
    counters.i_attention_wv += 1
    if shape.n_expert == 8:
        return "Q8_0"
    chosen = _attn_v_by_type(counters, asked, i_layer)
    return "Q5_K" if shape.is_70b and chosen in ("Q3_K", "Q4_K") else chosen


def _attn_v_by_type(counters: Counters, asked: Asked, i_layer: int) -> str:
    grouped, kind = counters.shape.n_gqa >= 4, asked.file_type
    if kind == "IQ3_XXS":
        return "Q4_K" if grouped else "IQ3_XXS" if counters.with_imatrix else "IQ3_S"
    if kind in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if more_bits(i_layer, counters.n_attention_wv) else asked.default
    fixed = {
        "Q2_K": "Q4_K" if grouped else "Q3_K",
        "IQ3_M": "Q4_K",
        "Q3_K_M": "Q5_K" if i_layer < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "Q4_K_S": "Q5_K" if i_layer < 4 else asked.default,
    }
    if grouped:
        fixed |= {"Q2_K_S": "Q4_K", "IQ3_XS": "Q4_K", "IQ3_S": "Q4_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
    return fixed.get(kind, asked.default)


def _attn_k(counters: Counters, asked: Asked) -> str:
    if counters.shape.n_expert == 8:
        return "Q8_0"
    return _attn_q(counters, asked)


def _attn_q(_: Counters, asked: Asked) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(asked.file_type, asked.default)


def _layer(counters: Counters, asked: Asked, seen: int) -> int:
    """layer_info(): with experts the layer is read from the name, else it is the count of what was seen.

    The engine throws where an expert model has such a tensor outside blk.N.; there the count is as good as any.
    """
    return asked.layer if counters.shape.n_expert > 1 and asked.layer is not None else seen


def _ffn_down(counters: Counters, asked: Asked) -> str:
    """The branch of FFN_DOWN."""
    i_layer, n_layer = _layer(counters, asked, counters.i_ffn_down), counters.shape.n_layer_all
    counters.i_ffn_down += 1
    if counters.shape.arch == "falcon":
        special = _ffn_down_falcon(asked, i_layer, n_layer)
        if special:
            return special
    first = i_layer < n_layer // 8
    more = more_bits(i_layer, n_layer)
    rule: dict[str, str | None] = {
        "Q2_K": "Q3_K",
        "Q2_K_S": "Q4_K" if first else None,
        "IQ3_M": "Q4_K" if first or (counters.shape.n_expert == 8 and more) else None,
        "Q3_K_M": "Q5_K" if i_layer < n_layer // 16 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "Q4_K_S": "Q5_K" if first else None,
        "Q4_K_M": "Q6_K" if more else None,
        "Q5_K_M": "Q6_K" if more else None,
    }
    if counters.with_imatrix:
        rule |= {"Q4_0": "Q4_1" if first else None, "Q5_0": "Q5_1" if first else None}
    else:
        five = "Q5_K" if first else None
        rule |= {"IQ3_XXS": "Q4_K" if first else "Q3_K", "IQ4_NL": five, "IQ4_XS": five}
    return rule.get(asked.file_type) or asked.default


def _ffn_down_falcon(asked: Asked, i_layer: int, n_layer: int) -> str | None:
    more, very_first = more_bits(i_layer, n_layer), i_layer < n_layer // 16
    return {
        "Q3_K_M": "Q5_K" if very_first else "Q4_K" if more else "Q3_K",
        "Q3_K_L": "Q4_K",
        "Q4_K_M": "Q6_K" if very_first else "Q5_K" if more else "Q4_K",
        "Q4_K_S": asked.default,
    }.get(asked.file_type)


_EIGHT_EXPERTS_OUTPUT = frozenset(
    ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")
)


def _attn_output(counters: Counters, asked: Asked) -> str:
    """The branch of ATTENTION_OUTPUT."""
    if counters.shape.arch == "falcon":
        return "Q4_K" if asked.file_type == "Q3_K_L" else asked.default
    if counters.shape.n_expert == 8:
        return "Q5_K" if asked.file_type in _EIGHT_EXPERTS_OUTPUT else asked.default
    raised = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
    return raised.get(asked.file_type, asked.default)


def _middle(asked: Asked, i_layer: int, n_layer: int) -> str:
    between = n_layer // 8 <= i_layer < 7 * n_layer // 8
    return "IQ3_XXS" if asked.file_type == "IQ3_XS" and between else asked.default


def _ffn_gate(counters: Counters, asked: Asked) -> str:
    """The branch of FFN_GATE."""
    i_layer = _layer(counters, asked, counters.i_ffn_gate)
    counters.i_ffn_gate += 1
    return _middle(asked, i_layer, counters.shape.n_layer_all)


def _ffn_up(counters: Counters, asked: Asked) -> str:
    """The branch of FFN_UP."""
    i_layer = _layer(counters, asked, counters.i_ffn_up)
    counters.i_ffn_up += 1
    return _middle(asked, i_layer, counters.shape.n_layer_all)


# ATTENTION_QKV has a branch of its own in the engine, after that of category_is_attn_v(): it is never reached.
_RULES: dict[Category, Callable[[Counters, Asked], str]] = {
    **dict.fromkeys(ATTN_V_LIKE, _attn_v),
    Category.ATTENTION_K: _attn_k,
    Category.ATTENTION_Q: _attn_q,
    Category.FFN_DOWN: _ffn_down,
    Category.ATTENTION_OUTPUT: _attn_output,
    Category.FFN_GATE: _ffn_gate,
    Category.FFN_UP: _ffn_up,
}
