"""Multi-head latent attention: conversion/deepseek.py and what derives from it (commit 0c1e570)."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata


def mla_attention(b: Block, c: HfConfig) -> None:
    """Queries through their own rank or direct; keys and values of one latent, its up-projection split in two."""
    n_head, rank = c.n("num_attention_heads"), c.n("kv_lora_rank")
    nope, rope, v = c.n("qk_nope_head_dim"), c.n("qk_rope_head_dim"), c.n("v_head_dim")
    bias = c.flag("attention_bias")
    if c.get("q_lora_rank") is not None:
        b.linear("attn_q_a", "self_attn.q_a_proj", b.n_embd, c.n("q_lora_rank"), bias=bias)
        b.norm("attn_q_a_norm", "self_attn.q_a_layernorm", c.n("q_lora_rank"))
        b.linear("attn_q_b", "self_attn.q_b_proj", c.n("q_lora_rank"), n_head * (nope + rope))
    else:
        b.linear("attn_q", "self_attn.q_proj", b.n_embd, n_head * (nope + rope))
    b.linear("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", b.n_embd, rank + rope, bias=bias)
    b.norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", rank)
    b.put("attn_k_b.weight", (nope, rank, n_head), "self_attn.kv_b_proj.weight", whole=False)
    b.put("attn_v_b.weight", (rank, v, n_head), "self_attn.kv_b_proj.weight", whole=False)
    b.linear("attn_output", "self_attn.o_proj", n_head * v, b.n_embd, bias=bias)


def routed_block(b: Block, c: HfConfig, *, scored: bool) -> None:
    """Experts with a shared one. scored: the router is corrected by a bias."""
    n_expert, n_ff = c.n("n_routed_experts"), c.n("moe_intermediate_size")
    b.router(n_expert)
    if scored:
        b.put("exp_probs_b.bias", (n_expert,), "mlp.gate.e_score_correction.bias")
    b.experts(n_expert, n_ff)
    n_shared = c.n("n_shared_experts", default=0)
    if n_shared:
        b.swiglu(n_ff * n_shared, hf="mlp.shared_experts", suffix="_shexp")


def is_dense(c: HfConfig, i: int) -> bool:
    """Of DeepSeek's rule: the first layers, and those between the sparse ones."""
    if c.get("n_routed_experts") is None:
        return True
    kinds = c.items("mlp_layer_types")
    if kinds is not None and i < len(kinds):
        return bool(kinds[i] == "dense")
    return i < c.n("first_k_dense_replace", default=0) or bool(i % max(1, c.n("moe_layer_freq", default=1)))


def scored(c: HfConfig) -> bool:
    """Whether the router has the correction bias of the third version."""
    method = c.get("topk_method")
    return method == "noaux_tc" if isinstance(method, str) else c.model_type not in ("deepseek", "deepseek_v2")


def deepseek2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        mla_attention(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        if is_dense(c, i):
            b.swiglu(c.n("intermediate_size"))
        else:
            routed_block(b, c, scored=scored(c))


def deepseek2_metadata(c: HfConfig, md: Metadata) -> None:
    """MLA is stored as one KV head of the latent's width (DeepseekV2Model.set_gguf_parameters)."""
    rank, rope = c.n("kv_lora_rank", default=512), c.n("qk_rope_head_dim")
    nope, v = c.n("qk_nope_head_dim"), c.n("v_head_dim")
    md.put("attention.head_count_kv", 1)
    md.put_f32("attention.layer_norm_rms_epsilon", c.get("rms_norm_eps", 1e-6))
    dense = c.n("num_hidden_layers") if c.get("n_routed_experts") is None else 0
    md.put("leading_dense_block_count", c.n("first_k_dense_replace", default=dense))
    md.put("vocab_size", c.n("vocab_size"))
    if c.get("q_lora_rank") is not None:
        md.put("attention.q_lora_rank", c.n("q_lora_rank"))
    md.put("attention.kv_lora_rank", rank)
    md.put("attention.key_length", rank + rope)
    md.put("attention.value_length", rank)
    md.put("attention.key_length_mla", nope + rope)
    md.put("attention.value_length_mla", v)
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size", "intermediate_size"))
    md.put("expert_count", c.get("n_routed_experts"))
    md.put("expert_shared_count", c.n("n_shared_experts", default=0))
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob") or None)
    md.put("rope.dimension_count", rope)
    mscale = c.rope().get("mscale_all_dim")
    md.put_f32("rope.scaling.yarn_log_multiplier", None if mscale is None else 0.1 * mscale)


_DEEPSEEK2 = Family("deepseek2", deepseek2_tensors, deepseek2_metadata)

FAMILIES = dict.fromkeys(
    (
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "KimiVLForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "YoutuForCausalLM",
    ),
    _DEEPSEEK2,
)
