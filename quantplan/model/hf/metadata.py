"""The key-values that the converter writes for every text model."""

from __future__ import annotations

import struct
from typing import Any

from quantplan.model.hf.config import HfConfig

FILE_TYPE_IDS = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # gguf.LlamaFileType
_GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}  # gguf.ExpertGatingFuncType


def f32(value: float) -> float:
    """A number as a GGUF holds it."""
    rounded: float = struct.unpack("<f", struct.pack("<f", float(value)))[0]
    return rounded


class Metadata:
    """GGUF key-values of one architecture. A None is not written."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.values: dict[str, object] = {"general.architecture": arch}

    def put(self, key: str, value: object) -> None:
        if value is not None:
            self.values[f"{self.arch}.{key}"] = value

    def put_f32(self, key: str, value: float | None) -> None:
        if value is not None:
            self.put(key, f32(value))

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.values.pop(f"{self.arch}.{key}", None)

    def keep(self, *keys: str) -> None:
        """For a model class that writes its own key-values: of the common ones only these."""
        wanted = {f"{self.arch}.{key}" for key in keys} | {"general.architecture"}
        self.values = {key: value for key, value in self.values.items() if key in wanted}


WIDTHS = ("block_count", "context_length", "embedding_length", "feed_forward_length")
HEADS = ("attention.head_count", "attention.head_count_kv")

# conversion/base.py (commit 0c1e570), TextModel.set_gguf_parameters(): key, the fields it may be called
_COUNTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "context_length",
        ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"),
    ),
    ("embedding_length", ("hidden_size", "n_embd", "dim")),
    (
        "feed_forward_length",
        ("prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"),
    ),
    ("attention.head_count", ("num_attention_heads", "n_head", "n_heads")),
    ("attention.head_count_kv", ("num_key_value_heads", "n_kv_heads")),
    ("expert_count", ("num_local_experts", "num_experts", "n_routed_experts")),
    ("expert_used_count", ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")),
    ("expert_group_count", ("n_group",)),
    ("expert_group_used_count", ("topk_group",)),
    ("attention.key_length", ("head_dim",)),
    ("attention.value_length", ("head_dim",)),
)
_EPSILONS = (
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps", "norm_eps")),
    ("attention.layer_norm_epsilon", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
)
_SCORES = (
    "score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func",
    "expert_selection_fn",
)  # fmt: skip


def base_metadata(config: HfConfig, arch: str, *, n_block: int) -> Metadata:
    """What TextModel.set_gguf_parameters() writes, before a model class adds its own."""
    md = Metadata(arch)
    md.put("block_count", n_block)
    for key, names in _COUNTS:
        value = config.first(*names)
        if value is not None:
            md.put(key, [int(v) for v in value] if isinstance(value, (list, tuple)) else config.n(*names))
    if config.get("is_causal") is False:
        md.put("attention.causal", False)
    rope = config.rope()
    _rope(md, rope)
    for key, names in _EPSILONS:
        md.put_f32(key, config.first(*names))
    score = config.first(*_SCORES)
    md.put("expert_gating_func", _GATING.get(score) if isinstance(score, str) else None)
    return md


def _rope(md: Metadata, rope: dict[str, Any]) -> None:
    full = rope.get("full_attention", rope)
    kind, factor = full.get("rope_type"), full.get("factor")
    if kind in ("linear", "yarn") and factor is not None:
        md.put("rope.scaling.type", kind)
        md.put_f32("rope.scaling.factor", factor)
    if kind == "yarn" and factor is not None:
        md.put("rope.scaling.original_context_length", full.get("original_max_position_embeddings"))
        for key, value in (
            ("yarn_ext_factor", full.get("extrapolation_factor")),
            ("yarn_attn_factor", full.get("attention_factor", full.get("attn_factor"))),
            ("yarn_beta_fast", full.get("beta_fast")),
            ("yarn_beta_slow", full.get("beta_slow")),
        ):
            md.put_f32(f"rope.scaling.{key}", value)
    if kind in ("su", "longrope"):
        md.put("rope.scaling.type", "longrope")
    sections = rope.get("mrope_section")
    if isinstance(sections, (list, tuple)):
        md.put("rope.dimension_sections", [*sections, 0, 0, 0, 0][: max(4, len(sections))][:4])
    md.put_f32("rope.freq_base", full.get("rope_theta"))
    md.put_f32("rope.freq_base_swa", rope.get("sliding_attention", {}).get("rope_theta"))
