"""Dense transformers of Llama's build: conversion/llama.py, qwen.py, mistral3.py (commit 0c1e570)."""

from __future__ import annotations

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
    b.attention(
        n_head=c.n("num_attention_heads"),
        n_head_kv=heads_kv(c),
        head_dim=head_dim(c),
        bias=bias,
        out_bias=out_bias,
        out=out,
    )


def rope_frequencies(c: HfConfig, t: Layout) -> None:
    """Llama 3.1's scaled frequencies are a tensor: LlamaModel.generate_extra_tensors()."""
    rope = c.rope()
    if str(rope.get("full_attention", rope).get("rope_type", "")).lower() == "llama3":
        t.put("rope_freqs.weight", (head_dim(c) // 2,))


def llama_tensors(c: HfConfig, t: Layout) -> None:
    n_expert = c.n("num_local_experts", default=0)
    t.ends()
    rope_frequencies(c, t)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        bias = c.flag("attention_bias")
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm")
        if n_expert > 1:
            b.router(n_expert, "block_sparse_moe.gate")
            b.experts(n_expert, c.n("intermediate_size"), hf="block_sparse_moe.experts", names=("w1", "w3", "w2"))
        else:
            b.swiglu(c.n("intermediate_size"), bias=c.flag("mlp_bias"))


def llama_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", head_dim(c))


def qwen2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=True)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.swiglu(c.n("intermediate_size"))


def qwen3_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        bias = c.flag("attention_bias")
        attention(b, c, bias=bias, out_bias=bias)
        b.qk_norm(head_dim(c), head_dim(c))
        b.norm("ffn_norm", "post_attention_layernorm")
        b.swiglu(c.n("intermediate_size"))


def nothing(_: HfConfig, __: Metadata) -> None:
    """No key beyond those that all have."""


_LLAMA = Family("llama", llama_tensors, llama_metadata)
_QWEN2 = Family("qwen2", qwen2_tensors, nothing)
_QWEN3 = Family("qwen3", qwen3_tensors, nothing)

FAMILIES = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "IQuestCoderForCausalLM"),
        _LLAMA,
    ),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
}
