"""Dense transformers of Llama's build: conversion/llama.py, qwen.py, granite.py, olmo.py (commit 0c1e570)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata


def head_dim(c: HfConfig) -> int:
    """Elements a head: stated, or the width shared out."""
    return c.n("head_dim", default=c.n("hidden_size", "n_embd") // max(1, c.n("num_attention_heads", "n_head")))


def heads_kv(c: HfConfig) -> int:
    return c.n("num_key_value_heads", "n_kv_heads", default=c.n("num_attention_heads", "n_head"))


def attention(b: Block, c: HfConfig, *, bias: bool = False, out_bias: bool = False, out: str = "o_proj") -> None:
    """Grouped-query attention as the configuration states it."""
    b.attention(
        n_head=c.n("num_attention_heads"),
        n_head_kv=heads_kv(c),
        head_dim=head_dim(c),
        bias=bias,
        out_bias=out_bias,
        out=out,
    )


def qk_norm_by_head(b: Block, c: HfConfig, names: tuple[str, str] = ("q_norm", "k_norm")) -> None:
    """One norm that all heads share."""
    b.qk_norm(head_dim(c), head_dim(c), names=names)


def qk_norm_all_heads(b: Block, c: HfConfig, names: tuple[str, str] = ("q_norm", "k_norm")) -> None:
    """One norm over all heads together."""
    b.qk_norm(head_dim(c) * c.n("num_attention_heads"), head_dim(c) * heads_kv(c), names=names)


def rope_frequencies(c: HfConfig, t: Layout, dim: int | None = None) -> None:
    """Llama 3.1's scaled frequencies are a tensor: LlamaModel.generate_extra_tensors()."""
    rope = c.rope()
    if str(rope.get("full_attention", rope).get("rope_type", "")).lower() == "llama3":
        t.put("rope_freqs.weight", ((head_dim(c) if dim is None else dim) // 2,))


def sliding_pattern(md: Metadata, kinds: list[str] | None) -> None:
    if kinds is not None:
        md.put("attention.sliding_window_pattern", [kind == "sliding_attention" for kind in kinds])


def nothing(_: HfConfig, __: Metadata) -> None:
    """No key beyond those that all have."""


def plain_tensors(
    c: HfConfig,
    t: Layout,
    *,
    bias: bool | None = None,
    out_bias: bool | None = None,
    mlp_bias: bool | None = None,
    norms: tuple[str, str] = ("attn_norm", "ffn_norm"),
    qk_norm: Callable[[Block, HfConfig], None] | None = None,
    rope: bool = False,
) -> None:
    """A norm, attention, a norm, gated feed-forward. None: the configuration says whether there is a bias."""
    t.ends()
    if rope:
        rope_frequencies(c, t)
    qkv = c.flag("attention_bias") if bias is None else bias
    output = c.flag("attention_bias") if out_bias is None else out_bias
    for i in range(t.n_block):
        b = t.block(i)
        b.norm(norms[0], "input_layernorm")
        attention(b, c, bias=qkv, out_bias=output)
        if qk_norm:
            qk_norm(b, c)
        b.norm(norms[1], "post_attention_layernorm")
        b.swiglu(c.n("intermediate_size"), bias=c.flag("mlp_bias") if mlp_bias is None else mlp_bias)


def llama_tensors(c: HfConfig, t: Layout) -> None:
    n_expert = c.n("num_local_experts", default=0)
    if n_expert < 2:
        plain_tensors(c, t, rope=True)
        return
    t.ends()
    rope_frequencies(c, t)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.router(n_expert, "block_sparse_moe.gate")
        b.experts(n_expert, c.n("intermediate_size"), hf="block_sparse_moe.experts", names=("w1", "w3", "w2"))


def llama_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", head_dim(c))


def granite_metadata(c: HfConfig, md: Metadata) -> None:
    """GraniteModel: head_dim is ignored, scales are added where they are not zero."""
    md.drop("attention.key_length", "attention.value_length")
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", c.n("hidden_size") // c.n("num_attention_heads"))
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        md.put_f32(key, c.get(name) or None)


def olmo_tensors(c: HfConfig, t: Layout) -> None:
    """OLMo 1: norms without weights."""
    t.ends(norm=None)
    for i in range(t.n_block):
        b = t.block(i)
        attention(b, c, bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"))
        b.swiglu(c.n("intermediate_size"))


def olmo_metadata(c: HfConfig, md: Metadata) -> None:
    md.put_f32("attention.layer_norm_epsilon", 1e-5)
    md.put_f32("attention.clamp_kqv", c.get("clip_qkv"))


def olmo2_tensors(c: HfConfig, t: Layout) -> None:
    """Norms after attention and feed-forward."""
    t.ends()
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        attention(b, c, bias=bias, out_bias=bias)
        qk_norm_all_heads(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.norm("post_ffw_norm", "post_feedforward_layernorm")
        b.swiglu(c.n("intermediate_size"))


def olmo2_metadata(c: HfConfig, md: Metadata) -> None:
    if c.get("sliding_window") is not None:
        md.put("attention.sliding_window", c.n("sliding_window"))
        kinds = c.layer_types(default_pattern=4)
        sliding_pattern(md, kinds)
        rope = c.rope()  # OLMo 3 has one theta for both kinds of layers
        if kinds and "full_attention" not in rope and c.model_type == "olmo3":
            md.put("rope.freq_base_swa", md.values.get(f"{md.arch}.rope.freq_base"))


def cohere_tensors(c: HfConfig, t: Layout, *, bias: bool = True) -> None:
    """Attention and feed-forward side by side behind one norm."""
    t.ends(tied=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias and c.flag("attention_bias"), out_bias=bias and c.flag("attention_bias"))
        if c.flag("use_qk_norm"):
            n = head_dim(c)
            b.put("attn_q_norm.weight", (n, c.n("num_attention_heads")), "self_attn.q_norm.weight")
            b.put("attn_k_norm.weight", (n, heads_kv(c)), "self_attn.k_norm.weight")
        b.swiglu(c.n("intermediate_size"))


def cohere_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("context_length", c.n("model_max_length", "max_position_embeddings"))
    md.put_f32("logit_scale", c.get("logit_scale"))
    md.put("rope.scaling.type", "none")


def cohere2_metadata(c: HfConfig, md: Metadata) -> None:
    md.put_f32("logit_scale", c.get("logit_scale"))
    md.put("attention.sliding_window", c.n("sliding_window"))
    rotary = float(c.get("rotary_pct", 1.0))
    md.put("rope.dimension_count", int(rotary * (c.n("hidden_size") // c.n("num_attention_heads"))))
    md.put("rope.scaling.type", "none")


def hunyuan_metadata(c: HfConfig, md: Metadata) -> None:
    """HunYuanModel: dynamic scaling by alpha becomes a larger base."""
    rope = c.rope()
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):
        dim = head_dim(c)
        base = float(rope.get("rope_theta", 10000.0)) * float(rope["alpha"]) ** (dim / (dim - 2))
        md.put_f32("rope.freq_base", base)
        md.put("rope.scaling.type", "none")
        md.put_f32("rope.scaling.factor", 1.0)
        md.put("rope.scaling.original_context_length", 256 * 1024)
        md.put("context_length", 256 * 1024)


_LLAMA = Family("llama", llama_tensors, llama_metadata)
_OLMO2 = Family("olmo2", olmo2_tensors, olmo2_metadata)
_HUNYUAN_NORMS = ("query_layernorm", "key_layernorm")

FAMILIES = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "IQuestCoderForCausalLM"),
        _LLAMA,
    ),
    "SmolLM3ForCausalLM": Family("smollm3", partial(plain_tensors, rope=True), llama_metadata),
    "Qwen2ForCausalLM": Family("qwen2", partial(plain_tensors, bias=True, out_bias=False, mlp_bias=False), nothing),
    "Qwen3ForCausalLM": Family("qwen3", partial(plain_tensors, qk_norm=qk_norm_by_head, mlp_bias=False), nothing),
    "GraniteForCausalLM": Family("granite", partial(plain_tensors, rope=True), granite_metadata),
    "SeedOssForCausalLM": Family(
        "seed_oss",
        lambda c, t: plain_tensors(
            c, t, out_bias=c.flag("attention_out_bias"), norms=("attn_norm", "post_attention_norm")
        ),
        nothing,
    ),
    "OlmoForCausalLM": Family("olmo", olmo_tensors, olmo_metadata),
    "OLMoForCausalLM": Family("olmo", olmo_tensors, olmo_metadata),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO2,
    "CohereForCausalLM": Family("command-r", cohere_tensors, cohere_metadata),
    "Cohere2ForCausalLM": Family("cohere2", partial(cohere_tensors, bias=False), cohere2_metadata),
    "HunYuanDenseV1ForCausalLM": Family(
        "hunyuan-dense",
        partial(plain_tensors, qk_norm=partial(qk_norm_by_head, names=_HUNYUAN_NORMS), mlp_bias=False),
        hunyuan_metadata,
    ),
}
