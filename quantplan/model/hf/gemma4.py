"""Gemma 4: embeddings by layer, shared KV, wide heads in full layers (conversion/gemma.py, commit 0c1e570)."""

from __future__ import annotations

from quantplan.errors import BadConfig
from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import sliding_pattern
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata


def _kinds(c: HfConfig) -> list[str]:
    """Five sliding layers, then a full one; the last is always full (Gemma4TextConfig)."""
    kinds = c.layer_types(default_pattern=6) or []
    if kinds and c.items("layer_types") is None:
        kinds[-1] = "full_attention"
    return kinds


def _layer_value(c: HfConfig, i: int, name: str) -> int | None:
    """`per_layer_config` of a layer, as transformers 5 writes it."""
    by_layer = c.get("per_layer_config")
    row = by_layer.get(str(i)) if isinstance(by_layer, dict) else None
    value = row.get(name) if isinstance(row, dict) else None
    return int(value) if isinstance(value, int) else None


def full_head_dim(c: HfConfig) -> int:
    if c.get("global_head_dim") is not None:
        return c.n("global_head_dim")
    for i, kind in enumerate(_kinds(c)):
        value = _layer_value(c, i, "head_dim") if kind == "full_attention" else None
        if value is not None:
            return value
    raise BadConfig(key="global_head_dim", why="is missing")


def full_heads_kv(c: HfConfig) -> int | None:
    if c.get("num_global_key_value_heads") is not None:
        return c.n("num_global_key_value_heads")
    for i, kind in enumerate(_kinds(c)):
        value = _layer_value(c, i, "num_key_value_heads") if kind == "full_attention" else None
        if value is not None:
            return value
    return None


def _attention(b: Block, c: HfConfig, *, full: bool, shared: bool) -> None:
    dim = full_head_dim(c) if full else c.n("head_dim")
    n_head, n_kv = c.n("num_attention_heads"), c.n("num_key_value_heads")
    if full:
        n_kv = full_heads_kv(c) or n_kv
    reuse = full and c.flag("attention_k_eq_v")
    b.linear("attn_q", "self_attn.q_proj", b.n_embd, n_head * dim)
    b.norm("attn_q_norm", "self_attn.q_norm", dim)
    b.linear("attn_k", "self_attn.k_proj", b.n_embd, n_kv * dim, expected=not shared)
    b.norm("attn_k_norm", "self_attn.k_norm", dim, expected=not shared)
    b.linear("attn_v", "self_attn.v_proj", b.n_embd, n_kv * dim, expected=not (shared or reuse))
    b.linear("attn_output", "self_attn.o_proj", n_head * dim, b.n_embd)


def _experts(b: Block, c: HfConfig) -> None:
    n_expert, n_ff = c.n("num_experts"), c.n("moe_intermediate_size", "expert_intermediate_size")
    b.router(n_expert, "router.proj")
    b.put("ffn_gate_inp.scale", (b.n_embd,), "router.scale")
    for part, shape, name in (
        ("gate_up", (b.n_embd, 2 * n_ff, n_expert), "gate_up_proj"),
        ("down", (n_ff, b.n_embd, n_expert), "down_proj"),
    ):
        b.put(f"ffn_{part}_exps.weight", shape, f"experts.{name}", f"experts.{name}.weight")
    b.put("ffn_down_exps.scale", (n_expert,), "router.per_expert_scale")
    b.norm("post_ffw_norm_1", "post_feedforward_layernorm_1")
    b.norm("post_ffw_norm_2", "post_feedforward_layernorm_2")
    b.norm("pre_ffw_norm_2", "pre_feedforward_layernorm_2")


def gemma4_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(tied=True)
    t.put("rope_freqs.weight", (full_head_dim(c) // 2,))
    n_per_layer = c.n("hidden_size_per_layer_input", default=0)
    if n_per_layer:
        width = n_per_layer * t.n_block
        n_vocab = c.n("vocab_size_per_layer_input", "vocab_size")
        t.put("per_layer_token_embd.weight", (width, n_vocab), "model.embed_tokens_per_layer.weight")
        t.put("per_layer_model_proj.weight", (t.n_embd, width), "model.per_layer_model_projection.weight")
        t.norm("per_layer_proj_norm", "model.per_layer_projection_norm", n_per_layer)
    first_shared = t.n_block - c.n("num_kv_shared_layers", default=0)
    kinds = _kinds(c)
    for i in range(t.n_block):
        b = t.block(i)
        shared = i >= first_shared
        b.norm("attn_norm", "input_layernorm")
        _attention(b, c, full=kinds[i] == "full_attention", shared=shared)
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.norm("ffn_norm", "pre_feedforward_layernorm")
        wide = 2 if shared and c.flag("use_double_wide_mlp") else 1
        b.swiglu(wide * c.n("intermediate_size"))
        b.norm("post_ffw_norm", "post_feedforward_layernorm")
        b.put("layer_output_scale.weight", (1,), "layer_scalar")
        if c.flag("enable_moe_block"):
            _experts(b, c)
        if n_per_layer:
            b.linear("inp_gate", "per_layer_input_gate", b.n_embd, n_per_layer)
            b.linear("proj", "per_layer_projection", n_per_layer, b.n_embd)
            b.norm("post_norm", "post_per_layer_input_norm")


def gemma4_metadata(c: HfConfig, md: Metadata) -> None:
    rope, kinds = c.rope(), _kinds(c)
    n_layer, n_shared = c.n("num_hidden_layers"), c.n("num_kv_shared_layers", default=0)
    md.put_f32("rope.freq_base", rope.get("full_attention", rope).get("rope_theta", 1_000_000.0))
    md.put_f32("rope.freq_base_swa", rope.get("sliding_attention", {}).get("rope_theta", 10_000.0))
    md.put_f32("final_logit_softcapping", c.get("final_logit_softcapping"))
    md.put("attention.sliding_window", c.n("sliding_window"))
    md.put("attention.shared_kv_layers", n_shared)
    md.put("embedding_length_per_layer_input", c.n("hidden_size_per_layer_input", default=0))
    sliding_pattern(md, kinds)
    full, swa = full_head_dim(c), c.n("head_dim")
    md.put("attention.key_length", full)
    md.put("attention.value_length", full)
    md.put("attention.key_length_swa", swa)
    md.put("attention.value_length_swa", swa)
    if c.first("expert_intermediate_size", "moe_intermediate_size") is not None:
        md.put("expert_feed_forward_length", c.n("expert_intermediate_size", "moe_intermediate_size"))
    if c.flag("use_double_wide_mlp"):
        n_ff = c.n("intermediate_size")
        md.put("feed_forward_length", [n_ff if i < n_layer - n_shared else 2 * n_ff for i in range(n_layer)])
    n_kv, n_kv_full = c.n("num_key_value_heads"), full_heads_kv(c)
    if n_kv_full is not None:
        md.put("attention.head_count_kv", [n_kv_full if kind == "full_attention" else n_kv for kind in kinds])
    md.put("rope.dimension_count", full)
    md.put("rope.dimension_count_swa", int(swa * float(rope.get("partial_rotary_factor", 1.0))))


FAMILIES = dict.fromkeys(
    ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"), Family("gemma4", gemma4_tensors, gemma4_metadata)
)
