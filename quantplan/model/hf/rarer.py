"""Families of one or two models: dots.1, Phi MoE, MiniCPM, Granite with windows, Cohere's MoE … (commit 0c1e570)."""

from __future__ import annotations

from functools import partial

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.deepseek import is_dense, mla_attention, routed_block
from quantplan.model.hf.dense import (
    attention,
    granite_metadata,
    head_dim,
    nothing,
    plain_tensors,
    qk_norm_by_head,
    rope_frequencies,
    sliding_pattern,
)
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Layout
from quantplan.model.hf.metadata import HEADS, WIDTHS, Metadata
from quantplan.model.hf.moe import expert_widths, n_experts
from quantplan.model.hf.variants import phi3_metadata


def deepseek1_tensors(c: HfConfig, t: Layout, *, qk_norm: bool = False, scored: bool = False) -> None:
    """The first DeepSeek MoE; dots.1 adds norms and a corrected router."""
    t.ends()
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"))
        if qk_norm:
            qk_norm_by_head(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        if is_dense(c, i):
            b.swiglu(c.n("intermediate_size"))
        else:
            routed_block(b, c, scored=scored)


def deepseek1_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("rope.dimension_count", head_dim(c))
    md.put("rope.scaling.type", "none")
    md.put("leading_dense_block_count", c.n("first_k_dense_replace"))
    md.put("vocab_size", c.n("vocab_size"))
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    md.put_f32("expert_weights_scale", 1.0)
    md.put("expert_count", c.n("n_routed_experts"))
    md.put("expert_shared_count", c.n("n_shared_experts"))


def dots1_metadata(c: HfConfig, md: Metadata) -> None:
    expert_widths(c, md)
    md.put("leading_dense_block_count", c.n("first_k_dense_replace"))
    md.put("expert_shared_count", c.n("n_shared_experts"))
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))


def phimoe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm_bias=True, head_bias=c.flag("lm_head_bias"))
    bias, n_expert, rope = c.flag("attention_bias"), n_experts(c), c.rope()
    if rope.get("long_factor"):
        for name in ("long", "short"):
            t.put(f"rope_factors_{name}.weight", (len(rope.get(f"{name}_factor", ())),))
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=True)
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.router(n_expert, "block_sparse_moe.gate")
        b.experts(n_expert, c.n("intermediate_size"), hf="block_sparse_moe.experts", names=("w1", "w3", "w2"))


def phimoe_metadata(c: HfConfig, md: Metadata) -> None:
    experts = {f"{md.arch}.expert_count": n_experts(c), f"{md.arch}.expert_used_count": c.n("num_experts_per_tok")}
    phi3_metadata(c, md)
    md.values |= experts


def minicpm_tensors(c: HfConfig, t: Layout) -> None:
    plain_tensors(c, t, bias=False, out_bias=False, mlp_bias=False)
    _factors(c, t)


def _factors(c: HfConfig, t: Layout) -> None:
    rope = c.rope()
    if rope.get("long_factor") or rope.get("short_factor"):
        for name in ("long", "short"):
            t.put(f"rope_factors_{name}.weight", (len(rope.get(f"{name}_factor", ())),))


def minicpm_metadata(c: HfConfig, md: Metadata) -> None:
    md.put_f32("embedding_scale", c.get("scale_emb"))
    md.put_f32("residual_scale", float(c.get("scale_depth")) / c.n("num_hidden_layers") ** 0.5)
    md.put_f32("logit_scale", c.n("hidden_size") / c.n("dim_model_base"))


def minicpm3_tensors(c: HfConfig, t: Layout) -> None:
    """MLA whose up-projection stays in one piece."""
    t.ends()
    _factors(c, t)
    n_head, nope, v = c.n("num_attention_heads"), c.n("qk_nope_head_dim"), c.n("v_head_dim")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        first = len(t.rows)
        mla_attention(b, c)
        t.rows[first:] = [
            row for row in t.rows[first:] if not row.name.endswith(("attn_k_b.weight", "attn_v_b.weight"))
        ]
        b.linear("attn_kv_b", "self_attn.kv_b_proj", c.n("kv_lora_rank"), n_head * (nope + v))
        b.norm("ffn_norm", "post_attention_layernorm")
        b.swiglu(c.n("intermediate_size"))


def minicpm3_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep(*WIDTHS, *HEADS, "attention.layer_norm_rms_epsilon")
    md.put("attention.q_lora_rank", c.get("q_lora_rank"))
    md.put("attention.kv_lora_rank", c.n("kv_lora_rank"))
    md.put("attention.key_length", c.n("qk_nope_head_dim") + c.n("qk_rope_head_dim"))
    md.put("rope.dimension_count", c.n("qk_rope_head_dim"))


def granite_swa_tensors(c: HfConfig, t: Layout) -> None:
    """Attention sinks; experts keep gate and up in one tensor."""
    t.ends()
    rope_frequencies(c, t)
    bias, n_expert, n_ff = c.flag("attention_bias"), c.n("num_local_experts", default=0), c.n("intermediate_size")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        b.put("attn_sinks.weight", (c.n("num_attention_heads"),), "self_attn.sinks")
        b.norm("ffn_norm", "post_attention_layernorm")
        if not n_expert:
            b.swiglu(n_ff, bias=c.flag("mlp_bias"))
            continue
        hf = "block_sparse_moe"
        b.router(n_expert, f"{hf}.router.layer")
        b.put(
            "ffn_gate_up_exps.weight",
            (b.n_embd, 2 * n_ff, n_expert),
            f"{hf}.input_linear.weight",
            f"{hf}.experts.gate_up_proj",
        )
        b.put(
            "ffn_down_exps.weight", (n_ff, b.n_embd, n_expert), f"{hf}.output_linear.weight", f"{hf}.experts.down_proj"
        )
        n_shared = c.n("shared_intermediate_size", default=0)
        if n_shared:
            b.linear("ffn_up_shexp", "shared_mlp.input_linear", b.n_embd, 2 * n_shared)
            b.linear("ffn_down_shexp", "shared_mlp.output_linear", n_shared, b.n_embd)


def granite_swa_metadata(c: HfConfig, md: Metadata) -> None:
    granite_metadata(c, md)
    md.put("attention.sliding_window", c.n("sliding_window", default=128))
    kinds = c.items("layer_types")
    swa = [k == "sliding_attention" for k in kinds] if kinds else [bool(i % 4) for i in range(c.n("num_hidden_layers"))]
    md.put("attention.sliding_window_pattern", swa)
    if c.items("no_rope_layers"):
        md.put("rope.pattern", [bool(x) for x in c.items("no_rope_layers") or ()])
    md.put("expert_shared_feed_forward_length", c.n("shared_intermediate_size", default=0) or None)


def cohere2_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_expert, n_ff = n_experts(c), c.n("intermediate_size")
    kinds, n_shared = c.items("mlp_layer_types"), c.n("num_shared_experts", default=0)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"))
        if (kinds[i] == "dense") if kinds else i < c.n("first_k_dense_replace", default=0):
            b.swiglu(c.n("prefix_dense_intermediate_size", "intermediate_size"))
            continue
        b.router(n_expert)
        b.experts(n_expert, n_ff)
        if n_shared:
            b.swiglu(n_ff * n_shared, hf="mlp.shared_experts", suffix="_shexp")


def cohere2_moe_metadata(c: HfConfig, md: Metadata) -> None:
    n_ff, n_shared = c.n("intermediate_size"), c.n("num_shared_experts", default=0)
    kinds = c.items("mlp_layer_types")
    lead = c.n("first_k_dense_replace", default=0)
    if kinds is not None:
        lead = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    md.drop("feed_forward_length")  # the converter takes the dense layers' width, and writes none where there is none
    md.put("feed_forward_length", c.get("prefix_dense_intermediate_size"))
    md.put_f32("logit_scale", c.get("logit_scale"))
    md.put("attention.sliding_window", c.n("sliding_window"))
    sliding_pattern(md, c.layer_types(default_pattern=4))
    md.put("expert_feed_forward_length", n_ff)
    md.put("leading_dense_block_count", lead)
    md.put("expert_weights_norm", c.flag("norm_topk_prob"))
    if n_shared:
        md.put("expert_shared_count", n_shared)
        md.put("expert_shared_feed_forward_length", n_ff * n_shared)
    md.put("rope.dimension_count", head_dim(c))
    md.put("rope.scaling.type", "none")


def _each(c: HfConfig, name: str) -> int:
    """A number, or a list by layer whose numbers must be the same (HunYuanMoEModel asserts it)."""
    by_layer = c.items(name)
    return int(by_layer[0]) if by_layer else c.n(name)


def hunyuan_moe_tensors(c: HfConfig, t: Layout) -> None:
    """Every layer has experts and a shared one of its own width."""
    t.ends()
    n_expert, n_ff, bias = n_experts(c), _each(c, "moe_intermediate_size"), c.flag("attention_bias")
    n_shared = c.n("intermediate_size") * _each(c, "num_shared_expert")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        qk_norm_by_head(b, c, ("query_layernorm", "key_layernorm"))
        b.norm("ffn_norm", "post_attention_layernorm")
        b.router(n_expert, "mlp.gate.wg")
        b.experts(n_expert, n_ff)
        b.swiglu(n_shared, hf="mlp.shared_mlp", suffix="_shexp")


def hunyuan_moe_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("expert_shared_feed_forward_length", c.n("intermediate_size"))
    md.put("expert_feed_forward_length", _each(c, "moe_intermediate_size"))
    md.put("expert_used_count", _each(c, "moe_topk"))
    md.put("expert_shared_count", _each(c, "num_shared_expert"))
    rope = c.rope()
    if rope.get("rope_type") == "dynamic":
        dim = c.n("hidden_size") // c.n("num_attention_heads")
        alpha = float(rope.get("alpha", 1000))
        md.put_f32("rope.freq_base", float(rope.get("rope_theta", 10000.0)) * alpha ** (dim / (dim - 2)))
        md.put("rope.scaling.type", "none")
        md.put_f32("rope.scaling.factor", 1.0)
        md.put("rope.scaling.original_context_length", 256 * 1024)
        md.put("context_length", 256 * 1024)


FAMILIES = {
    "HunYuanMoEV1ForCausalLM": Family("hunyuan-moe", hunyuan_moe_tensors, hunyuan_moe_metadata),
    "DeepseekForCausalLM": Family("deepseek", deepseek1_tensors, deepseek1_metadata),
    "Dots1ForCausalLM": Family("dots1", partial(deepseek1_tensors, qk_norm=True, scored=True), dots1_metadata),
    "PhiMoEForCausalLM": Family("phimoe", phimoe_tensors, phimoe_metadata),
    "MiniCPMForCausalLM": Family("minicpm", minicpm_tensors, minicpm_metadata),
    "MiniCPM3ForCausalLM": Family("minicpm3", minicpm3_tensors, minicpm3_metadata),
    **dict.fromkeys(
        ("GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM"),
        Family("granite_swa", granite_swa_tensors, granite_swa_metadata),
    ),
    "Cohere2MoeForCausalLM": Family("cohere2moe", cohere2_moe_tensors, cohere2_moe_metadata),
    "PaddleOCRVLForConditionalGeneration": Family(
        "paddleocr", partial(plain_tensors, bias=False, out_bias=False, mlp_bias=False), nothing
    ),
}
