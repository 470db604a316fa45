"""Mixtures of experts over grouped-query attention (conversion/ of llama.cpp at commit 0c1e570)."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import (
    attention,
    head_dim,
    heads_kv,
    qk_norm_all_heads,
    qk_norm_by_head,
    sliding_pattern,
)
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata


def n_experts(c: HfConfig) -> int:
    return c.n("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def nextn(c: HfConfig) -> int:
    """Multi-token prediction layers behind the last."""
    return c.n("num_nextn_predict_layers", default=0)


def blocks_with_nextn(c: HfConfig) -> int:
    return c.n("num_hidden_layers") + nextn(c)


def nextn_block(b: Block, *, shared: bool = True) -> None:
    """What a NextN layer has beside a layer's own tensors. The shared embeddings and head are rare."""
    b.linear("nextn.eh_proj", "eh_proj", 2 * b.n_embd, b.n_embd)
    b.norm("nextn.enorm", "enorm")
    b.norm("nextn.hnorm", "hnorm")
    b.norm("nextn.shared_head_norm", "shared_head.norm")
    if shared:
        n_vocab = b.config.n("vocab_size")
        b.put("nextn.embed_tokens.weight", (b.n_embd, n_vocab), "embed_tokens.weight", expected=False)
        b.put("nextn.shared_head_head.weight", (b.n_embd, n_vocab), "shared_head.head.weight", expected=False)


def is_sparse(c: HfConfig, i: int) -> bool:
    """Qwen's rule for which layers have experts."""
    only_dense = c.items("mlp_only_layers") or []
    return i not in only_dense and (i + 1) % max(1, c.n("decoder_sparse_step", default=1)) == 0


def qwen2_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_expert, n_shared = n_experts(c), c.n("shared_expert_intermediate_size", default=0)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=c.flag("qkv_bias", default=True))
        b.norm("ffn_norm", "post_attention_layernorm")
        if not is_sparse(c, i):
            b.swiglu(c.n("intermediate_size"))
            continue
        b.router(n_expert)
        b.experts(n_expert, c.n("moe_intermediate_size"))
        b.swiglu(n_shared, hf="mlp.shared_expert", suffix="_shexp")
        b.put("ffn_gate_inp_shexp.weight", (b.n_embd, 1), "mlp.shared_expert_gate.weight")


def qwen3_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        qk_norm_by_head(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        if is_sparse(c, i):
            b.router(n_experts(c))
            b.experts(n_experts(c), c.n("moe_intermediate_size"))
        else:
            b.swiglu(c.n("intermediate_size"))


def expert_widths(c: HfConfig, md: Metadata) -> None:
    if c.get("moe_intermediate_size") is not None:
        md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    if c.get("shared_expert_intermediate_size") is not None:
        md.put("expert_shared_feed_forward_length", c.n("shared_expert_intermediate_size"))


def mellum_metadata(c: HfConfig, md: Metadata) -> None:
    expert_widths(c, md)
    md.put("attention.sliding_window", c.n("sliding_window"))
    sliding_pattern(md, c.layer_types())


def olmoe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        qk_norm_all_heads(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.router(n_experts(c))
        b.experts(n_experts(c), c.n("intermediate_size"))


def olmoe_metadata(_: HfConfig, md: Metadata) -> None:
    md.put_f32("attention.layer_norm_rms_epsilon", 1e-5)


def minimax_m2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_expert = n_experts(c)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        if c.flag("use_qk_norm", default=True):
            qk_norm_all_heads(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.router(n_expert, "block_sparse_moe.gate")
        b.put("exp_probs_b.bias", (n_expert,), "block_sparse_moe.e_score_correction.bias")
        b.experts(n_expert, c.n("intermediate_size"), hf="block_sparse_moe.experts", names=("w1", "w3", "w2"))


def minimax_m2_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("expert_feed_forward_length", c.n("intermediate_size"))
    md.put("expert_gating_func", md.values.get(f"{md.arch}.expert_gating_func", 2))  # the engine aborts without one
    rotary = c.get("rotary_dim")
    dim = int(head_dim(c) * float(c.rope().get("partial_rotary_factor", 0.5))) if rotary is None else int(rotary)
    md.put("rope.dimension_count", dim)


def gpt_oss_tensors(c: HfConfig, t: Layout) -> None:
    """Biases everywhere, attention sinks, experts of gate and up interleaved."""
    t.ends()
    n_expert, n_ff, n_head = n_experts(c), c.n("intermediate_size"), c.n("num_attention_heads")
    bias = c.flag("attention_bias", default=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        b.put("attn_sinks.weight", (n_head,), "self_attn.sinks")
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.router(n_expert, "mlp.router", bias=True)
        for part, hf, shape in (
            ("gate", "gate_up_proj", (b.n_embd, n_ff, n_expert)),
            ("up", "gate_up_proj", (b.n_embd, n_ff, n_expert)),
            ("down", "down_proj", (n_ff, b.n_embd, n_expert)),
        ):
            fused = f"mlp.experts.{hf}"
            b.put(f"ffn_{part}_exps.weight", shape, fused, f"{fused}.weight", f"{fused}_blocks", whole=False)
            b.put(f"ffn_{part}_exps.bias", (shape[1], n_expert), f"{fused}_bias", whole=False)


def gpt_oss_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("attention.sliding_window", c.n("sliding_window"))
    md.put("expert_feed_forward_length", c.n("intermediate_size"))


def ernie_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_expert, bias = n_experts(c), c.flag("use_bias")
    first, last = c.n("moe_layer_start_index", default=1), c.get("moe_layer_end_index", -1)
    last = t.n_block - 1 if last is None or last < 0 else int(last)
    every = max(1, c.n("moe_layer_interval", default=1))
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm")
        if not (first <= i <= last and (i + 1) % every == 0):
            b.swiglu(c.n("intermediate_size"), bias=bias)
            continue
        n_ff = c.n("moe_intermediate_size")
        b.router(n_expert)
        b.put("exp_probs_b.bias", (n_expert, 1), "mlp.moe_statics.e_score_correction.bias")
        b.experts(n_expert, n_ff)
        n_shared = c.n("moe_num_shared_experts", default=0)
        if n_shared:
            b.swiglu(n_ff * n_shared, hf="mlp.shared_experts", suffix="_shexp", bias=bias)


def ernie_moe_metadata(c: HfConfig, md: Metadata) -> None:
    """The width of the shared experts is written as the converter computes it, right or wrong."""
    md.put("expert_count", c.n("moe_num_experts"))
    md.put("expert_used_count", c.n("moe_k"))
    md.put("interleave_moe_layer_step", c.n("moe_layer_interval"))
    md.put("leading_dense_block_count", c.n("moe_layer_start_index"))
    if c.get("moe_intermediate_size") is not None:
        md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    if c.get("moe_num_shared_experts") is not None:
        md.put("expert_shared_count", c.n("moe_num_shared_experts"))
        if c.n("moe_num_shared_experts") and c.get("intermediate_size") and heads_kv(c):
            md.put("expert_shared_feed_forward_length", c.n("intermediate_size") // heads_kv(c))


def glm4_moe_tensors(c: HfConfig, t: Layout) -> None:
    """Some layers dense, shared experts, NextN layers kept."""
    t.ends()
    n_expert, n_ff, n_layer = c.n("n_routed_experts"), c.n("moe_intermediate_size"), c.n("num_hidden_layers")
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias)
        if c.flag("use_qk_norm"):
            qk_norm_by_head(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        if i < c.n("first_k_dense_replace", default=0):
            b.swiglu(c.n("intermediate_size"))
        else:
            b.router(n_expert)
            b.put("exp_probs_b.bias", (n_expert,), "mlp.gate.e_score_correction.bias")
            b.experts(n_expert, n_ff)
            n_shared = c.n("n_shared_experts", default=0)
            if n_shared:
                b.swiglu(n_ff * n_shared, hf="mlp.shared_experts", suffix="_shexp")
        if i >= n_layer:
            nextn_block(b)


def glm4_moe_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("rope.dimension_count", int(head_dim(c) * float(c.rope().get("partial_rotary_factor", 0.5))))
    md.put("expert_count", c.get("n_routed_experts"))
    md.put("expert_feed_forward_length", c.get("moe_intermediate_size"))
    md.put("expert_shared_count", c.get("n_shared_experts"))
    md.put("leading_dense_block_count", c.get("first_k_dense_replace"))
    md.put("expert_gating_func", 2)  # gguf.ExpertGatingFuncType.SIGMOID
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))
    md.put("nextn_predict_layers", c.get("num_nextn_predict_layers"))


FAMILIES = {
    "Qwen2MoeForCausalLM": Family("qwen2moe", qwen2_moe_tensors, expert_widths),
    "Qwen3MoeForCausalLM": Family("qwen3moe", qwen3_moe_tensors, expert_widths),
    "MellumForCausalLM": Family("mellum", qwen3_moe_tensors, mellum_metadata),
    "OlmoeForCausalLM": Family("olmoe", olmoe_tensors, olmoe_metadata),
    "MiniMaxM2ForCausalLM": Family("minimax-m2", minimax_m2_tensors, minimax_m2_metadata),
    "GptOssForCausalLM": Family("gpt-oss", gpt_oss_tensors, gpt_oss_metadata),
    "Ernie4_5_MoeForCausalLM": Family("ernie4_5-moe", ernie_moe_tensors, ernie_moe_metadata),
    "Glm4MoeForCausalLM": Family("glm4moe", glm4_moe_tensors, glm4_moe_metadata, blocks_with_nextn),
    "SolarOpenForCausalLM": Family("glm4moe", glm4_moe_tensors, glm4_moe_metadata, blocks_with_nextn),
}
