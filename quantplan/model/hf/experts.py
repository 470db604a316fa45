"""More mixtures of experts: AFMoE, EXAONE MoE, Granite MoE, Ling, dots.1, Llama 4, Hunyuan (commit 0c1e570)."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.deepseek import deepseek2_metadata, deepseek2_tensors, is_dense, mla_attention, routed_block
from quantplan.model.hf.dense import attention, granite_metadata, head_dim, heads_kv, qk_norm_by_head, sliding_pattern
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata
from quantplan.model.hf.moe import blocks_with_nextn, n_experts, nextn, nextn_block
from quantplan.model.hf.mtp import read_exaone_mtp
from quantplan.model.hf.recurrent import granite_experts


def afmoe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_head, n_expert, n_ff = c.n("num_attention_heads"), n_experts(c), c.n("moe_intermediate_size")
    n_shared = c.n("num_shared_experts", default=0)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        b.linear("attn_gate", "self_attn.gate_proj", b.n_embd, n_head * head_dim(c))
        qk_norm_by_head(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.norm("ffn_norm", "pre_mlp_layernorm")
        b.norm("post_ffw_norm", "post_mlp_layernorm")
        if i < c.n("num_dense_layers", default=0):
            b.swiglu(c.n("intermediate_size"))
            continue
        b.router(n_expert, "mlp.router.gate")
        b.put("exp_probs_b.bias", (n_expert,), "mlp.expert_bias")
        b.experts(n_expert, n_ff)
        if n_shared:
            b.swiglu(n_ff * n_shared, hf="mlp.shared_experts", suffix="_shexp")


def afmoe_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", head_dim(c))
    md.put("expert_shared_count", c.n("num_shared_experts", default=0) or None)
    md.put("expert_feed_forward_length", c.get("moe_intermediate_size"))
    md.put("leading_dense_block_count", c.get("num_dense_layers"))
    md.put("expert_weights_norm", c.get("route_norm"))
    md.put_f32("expert_weights_scale", c.get("route_scale"))
    md.put("attention.sliding_window", c.get("sliding_window"))


def exaone_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_layer, n_expert, n_ff = c.n("num_hidden_layers"), n_experts(c), c.n("moe_intermediate_size")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        qk_norm_by_head(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        if i >= n_layer or _exaone_dense(c, i):
            b.swiglu(c.n("intermediate_size"))
        else:
            b.router(n_expert)
            b.put("exp_probs_b.bias", (n_expert,), "mlp.e_score_correction.bias")
            b.experts(n_expert, n_ff)
            b.swiglu(n_ff * c.n("num_shared_experts"), hf="mlp.shared_experts", suffix="_shexp")
        if i >= n_layer:
            nextn_block(b)


def _exaone_dense(c: HfConfig, i: int) -> bool:
    kinds = c.items("mlp_layer_types")
    if kinds is not None and i < len(kinds):
        return bool(kinds[i] == "dense")
    return i < c.n("first_k_dense_replace", "first_last_k_dense_replace", default=0)


def exaone_moe_metadata(c: HfConfig, md: Metadata) -> None:
    if c.get("sliding_window") is not None:
        md.put("attention.sliding_window", c.n("sliding_window"))
        sliding_pattern(md, c.layer_types())
    n_ff, n_shared = c.n("moe_intermediate_size"), c.n("num_shared_experts")
    md.put("expert_feed_forward_length", n_ff)
    md.put("expert_shared_count", n_shared)
    md.put("expert_shared_feed_forward_length", n_ff * n_shared)
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))
    md.put("leading_dense_block_count", c.n("first_k_dense_replace", "first_last_k_dense_replace", default=0))
    md.put("nextn_predict_layers", nextn(c))
    md.put("rope.scaling.type", "none")


def granite_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm")
        granite_experts(b, c, n_experts(c))


def granite_moe_metadata(c: HfConfig, md: Metadata) -> None:
    granite_metadata(c, md)
    md.put("expert_shared_feed_forward_length", c.n("shared_intermediate_size", default=0) or None)


def _bailing_qkv(b: Block, c: HfConfig, *, fused: bool) -> None:
    n_head, n_kv, dim = c.n("num_attention_heads"), heads_kv(c), head_dim(c)
    if fused:
        b.linear(
            "attn_qkv", "attention.query_key_value", b.n_embd, (n_head + 2 * n_kv) * dim, bias=c.flag("use_qkv_bias")
        )
    else:
        for part, n in (("q", n_head), ("k", n_kv), ("v", n_kv)):
            b.put(f"attn_{part}.weight", (b.n_embd, n * dim), "attention.query_key_value.weight", whole=False)
    b.linear("attn_output", "attention.dense", n_head * dim, b.n_embd)


def bailing_tensors(c: HfConfig, t: Layout, *, second: bool = False) -> None:
    """Ling: the first version parts q, k and v; the second keeps them fused and adds norms and router biases."""
    t.ends(embed="model.word_embeddings")
    n_expert, n_ff, n_layer = n_experts(c), c.n("moe_intermediate_size"), c.n("num_hidden_layers")
    n_shared = c.n("num_shared_experts", default=0)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        _bailing_qkv(b, c, fused=second)
        if second:
            b.qk_norm(head_dim(c), head_dim(c), hf="attention", names=("query_layernorm", "key_layernorm"))
        b.norm("ffn_norm", "post_attention_layernorm")
        if i < c.n("first_k_dense_replace", default=0):
            b.swiglu(c.n("intermediate_size"))
        else:
            b.router(n_expert)
            if second and c.flag("moe_router_enable_expert_bias", default=True):
                b.put("exp_probs_b.bias", (n_expert,), "mlp.gate.expert_bias")
            b.experts(n_expert, n_ff)
            if n_shared:
                width = (
                    c.n("moe_shared_expert_intermediate_size", default=n_ff * n_shared) if second else n_ff * n_shared
                )
                b.swiglu(width, hf="mlp.shared_experts", suffix="_shexp")
        if second and i >= n_layer:
            nextn_block(b, shared=False)
            b.norm("layer_output_norm", "final_layernorm")


def bailing_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("rope.dimension_count", head_dim(c))
    md.put("leading_dense_block_count", c.n("first_k_dense_replace"))
    md.put("vocab_size", c.n("vocab_size"))
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    md.put_f32("expert_weights_scale", 1.0)
    md.put("expert_shared_count", c.n("num_shared_experts"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))


def bailing2_metadata(c: HfConfig, md: Metadata) -> None:
    bailing_metadata(c, md)
    n_ff, n_shared = c.n("moe_intermediate_size"), c.n("num_shared_experts")
    md.put("rope.dimension_count", int(head_dim(c) * float(c.rope().get("partial_rotary_factor", 0.5))))
    md.put("expert_shared_feed_forward_length", c.n("moe_shared_expert_intermediate_size", default=n_ff * n_shared))
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("nextn_predict_layers", c.get("num_nextn_predict_layers"))


def llama4_tensors(c: HfConfig, t: Layout) -> None:
    """Experts in every n-th layer, fused in the checkpoint."""
    t.ends()
    n_expert, n_ff = c.n("num_local_experts"), c.n("intermediate_size")
    every = max(1, c.n("interleave_moe_layer_step", default=1))
    sparse = c.items("moe_layers")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        bias = c.flag("attention_bias")
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm")
        if i in sparse if sparse else (i + 1) % every == 0:
            b.router(n_expert, "feed_forward.router")
            b.experts(n_expert, n_ff, hf="feed_forward.experts")
            b.swiglu(n_ff, hf="feed_forward.shared_expert", suffix="_shexp")
        else:
            b.swiglu(c.n("intermediate_size_mlp"), hf="feed_forward")


def llama4_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("feed_forward_length", c.n("intermediate_size_mlp"))
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", head_dim(c))
    md.put("interleave_moe_layer_step", c.n("interleave_moe_layer_step"))
    md.put("expert_feed_forward_length", c.n("intermediate_size"))


def dsa_tensors(c: HfConfig, t: Layout) -> None:
    """DeepSeek 3.2's build: MLA with an indexer that picks the tokens to attend to."""
    n_head, dim = c.n("index_n_heads"), c.n("index_head_dim")
    t.ends()
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        mla_attention(b, c)
        b.norm("indexer.k_norm", "self_attn.indexer.k_norm", dim, bias=True)
        b.linear("indexer.proj", "self_attn.indexer.weights_proj", b.n_embd, n_head)
        b.linear("indexer.attn_k", "self_attn.indexer.wk", b.n_embd, dim)
        b.linear("indexer.attn_q_b", "self_attn.indexer.wq_b", c.n("q_lora_rank"), n_head * dim)
        b.norm("ffn_norm", "post_attention_layernorm")
        if is_dense(c, i):
            b.swiglu(c.n("intermediate_size"))
        else:
            routed_block(b, c, scored=True)
        if i >= c.n("num_hidden_layers"):
            nextn_block(b)


def dsa_metadata(c: HfConfig, md: Metadata) -> None:
    deepseek2_metadata(c, md)
    md.put("attention.indexer.head_count", c.n("index_n_heads"))
    md.put("attention.indexer.key_length", c.n("index_head_dim"))
    md.put("attention.indexer.top_k", c.n("index_topk"))
    if md.arch == "glm-dsa":
        kinds = c.items("indexer_types") or ["full"] * c.n("num_hidden_layers")
        md.put("attention.indexer.types", [kind == "full" for kind in kinds])


FAMILIES = {
    "AfmoeForCausalLM": Family("afmoe", afmoe_tensors, afmoe_metadata),
    **dict.fromkeys(
        ("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
        Family("exaone-moe", exaone_moe_tensors, exaone_moe_metadata, blocks_with_nextn, read=read_exaone_mtp),
    ),
    **dict.fromkeys(
        ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        Family("granitemoe", granite_moe_tensors, granite_moe_metadata),
    ),
    "BailingMoeForCausalLM": Family("bailingmoe", bailing_tensors, bailing_metadata),
    "BailingMoeV2ForCausalLM": Family(
        "bailingmoe2", lambda c, t: bailing_tensors(c, t, second=True), bailing2_metadata, blocks_with_nextn
    ),
    **dict.fromkeys(
        ("Llama4ForConditionalGeneration", "Llama4ForCausalLM"), Family("llama4", llama4_tensors, llama4_metadata)
    ),
    "Glm4MoeLiteForCausalLM": Family("deepseek2", deepseek2_tensors, deepseek2_metadata),
    "GlmMoeDsaForCausalLM": Family("glm-dsa", dsa_tensors, dsa_metadata, blocks_with_nextn),
    "DeepseekV32ForCausalLM": Family("deepseek32", dsa_tensors, dsa_metadata, blocks_with_nextn),
}
