"""Ling 3: conversion/bailingmoe3.py (commit 0c1e570). Delta attention, with latent attention every few layers."""

from __future__ import annotations

from quantplan.errors import BadConfig
from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata, f32
from quantplan.model.hf.moe import blocks_with_nextn, n_experts, nextn

_HF = "attention"
_OUT = (f"{_HF}.dense.weight", f"{_HF}.o_proj.weight")


def attends(c: HfConfig, i: int) -> bool:
    """is_full_attention(): the last of a group, what is left over of the groups, and NextN layers."""
    n_layer, group = c.n("num_hidden_layers"), max(1, c.n("layer_group_size"))
    return i >= n_layer // group * group or (i + 1) % group == 0


def _latent_attention(b: Block, c: HfConfig) -> None:
    n_head, rank = c.n("num_attention_heads"), c.n("kv_lora_rank")
    nope, rope, v = c.n("qk_nope_head_dim"), c.n("qk_rope_head_dim"), c.n("v_head_dim")
    if c.get("q_lora_rank") is not None:
        b.linear("attn_q_a", f"{_HF}.q_a_proj", b.n_embd, c.n("q_lora_rank"))
        b.norm("attn_q_a_norm", f"{_HF}.q_a_layernorm", c.n("q_lora_rank"))
        b.linear("attn_q_b", f"{_HF}.q_b_proj", c.n("q_lora_rank"), n_head * (nope + rope))
    else:
        b.linear("attn_q", f"{_HF}.q_proj", b.n_embd, n_head * (nope + rope))
    b.linear("attn_kv_a_mqa", f"{_HF}.kv_a_proj_with_mqa", b.n_embd, rank + rope)
    b.norm("attn_kv_a_norm", f"{_HF}.kv_a_layernorm", rank)
    b.put("attn_k_b.weight", (nope, rank, n_head), f"{_HF}.kv_b_proj.weight", whole=False)
    b.put("attn_v_b.weight", (rank, v, n_head), f"{_HF}.kv_b_proj.weight", whole=False)
    b.linear("attn_gate", f"{_HF}.g_proj", b.n_embd, n_head)
    b.put("attn_output.weight", (n_head * v, b.n_embd), *_OUT)


def _delta_attention(b: Block, c: HfConfig) -> None:
    n_head, dim = c.n("num_attention_heads"), c.n("head_dim")
    n_inner, n_conv = n_head * dim, c.n("short_conv_kernel_size")
    for part in ("q", "k", "v"):
        b.linear(f"attn_{part}", f"{_HF}.{part}_proj", b.n_embd, n_inner)
        b.put(f"ssm_conv1d_{part}.weight", (n_conv, 1, n_inner, 1), f"{_HF}.{part}_conv1d.weight", whole=False)
    b.linear("ssm_f_a", f"{_HF}.f_proj", b.n_embd, n_inner)
    b.linear("ssm_beta", f"{_HF}.b_proj", b.n_embd, n_head)
    b.put("ssm_a", (1, n_head), f"{_HF}.A_log", whole=False)
    b.put("ssm_dt.bias", (n_inner,), f"{_HF}.dt_bias")
    b.linear("ssm_g_a", f"{_HF}.g_proj", b.n_embd, n_inner)
    b.norm("ssm_norm", f"{_HF}.o_norm", dim)
    b.put("attn_output.weight", (n_inner, b.n_embd), *_OUT)


def bailing3_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="model.word_embeddings")
    n_expert = n_experts(c)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        if attends(c, i):
            _latent_attention(b, c)
        else:
            _delta_attention(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        if i < c.n("first_k_dense_replace"):
            b.swiglu(c.n("intermediate_size"))
        else:
            b.router(n_expert)
            b.put("exp_probs_b.bias", (n_expert,), "mlp.gate.expert_bias", "mlp.gate.e_score_correction.bias")
            b.experts(n_expert, c.n("moe_intermediate_size"))
            b.swiglu(c.n("moe_shared_expert_intermediate_size"), hf="mlp.shared_experts", suffix="_shexp")
        if i >= c.n("num_hidden_layers"):
            b.linear("nextn.eh_proj", "eh_proj", 2 * b.n_embd, b.n_embd)
            b.norm("nextn.enorm", "enorm")
            b.norm("nextn.hnorm", "hnorm")
            b.norm("layer_output_norm", "final_layernorm")


def _checked(c: HfConfig) -> None:
    """set_gguf_parameters() takes no other form."""
    for key, wanted in (
        ("no_kda_lora", True),
        ("kda_safe_gate", True),
        ("gated_attention_proj_granularity_type", "head_wise"),
    ):
        if c.get(key) != wanted:
            raise BadConfig(key=key, why=f"is not {wanted}, and the converter takes nothing else")


def _clamps(c: HfConfig, key: str, n_block: int) -> list[float] | None:
    given = c.items(key)
    if given is None:
        return None
    values = [0.0 if value is None else f32(value) for value in given[:n_block]]
    return values + [0.0] * (n_block - len(values))


def bailing3_metadata(c: HfConfig, md: Metadata) -> None:
    _checked(c)
    n_block, rank, rope = blocks_with_nextn(c), c.n("kv_lora_rank"), c.n("qk_rope_head_dim")
    md.put("attention.head_count_kv", [int(attends(c, i)) for i in range(n_block)])
    md.put("vocab_size", c.n("vocab_size"))
    md.put("ssm.conv_kernel", c.n("short_conv_kernel_size"))
    md.put("kda.head_dim", c.n("head_dim"))
    md.put("kda.safe_gate", c.flag("kda_safe_gate"))
    md.put_f32("kda.gate_lower_bound", c.get("kda_lower_bound"))
    if c.get("q_lora_rank") is not None:
        md.put("attention.q_lora_rank", c.n("q_lora_rank"))
    md.put("attention.kv_lora_rank", rank)
    md.put("rope.dimension_count", rope)
    md.put("attention.key_length", rank + rope)
    md.put("attention.key_length_mla", c.n("qk_nope_head_dim") + rope)
    md.put("attention.value_length_mla", c.n("v_head_dim"))
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    md.put("expert_shared_feed_forward_length", c.n("moe_shared_expert_intermediate_size"))
    md.put("expert_shared_count", c.n("num_shared_experts", default=1))
    md.put("leading_dense_block_count", c.n("first_k_dense_replace"))
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))
    md.put("swiglu_clamp_exp", _clamps(c, "expert_swiglu_limit_list", n_block))
    md.put("swiglu_clamp_shexp", _clamps(c, "share_expert_swiglu_limit_list", n_block))
    md.put("nextn_predict_layers", nextn(c) or None)


FAMILIES = {
    "BailingMoeV3ForCausalLM": Family("bailingmoe3", bailing3_tensors, bailing3_metadata, blocks_with_nextn),
}
