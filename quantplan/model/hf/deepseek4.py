"""DeepSeek V4: conversion/deepseek.py, DeepseekV4Model (commit 0c1e570).

The checkpoint's own types decide: FP8 becomes Q8_0, FP4 experts stay as MXFP4, bf16 and float32 stay, whatever the
outtype. Its multi-token prediction layers are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantplan.errors import BadConfig, UnsupportedQuantization
from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout, Source
from quantplan.model.hf.metadata import Metadata, f32
from quantplan.model.hf.quantized import FILE_TYPE_IDS, Stored, Weights

_INDEXED_RATIO = 4  # src/models/deepseek4.cpp: only layers of this compression have an indexer, and windows overlap
_EXPERT = re.compile(r"layers\.\d+\.ffn\.experts\.\d+\.w[123]\.weight$")
_FP8 = ("F8_E4M3", "F8_E5M2")


def read_checkpoint(c: HfConfig, weights: Weights) -> None:
    """Gives each weight the type that it gets, and takes the scales away. Raises UnsupportedQuantization."""
    for name in [name for name in weights if not name.startswith("mtp.")]:
        stored = weights.get(name)
        if stored is None or name.endswith(".scale"):
            continue
        scale = name.removesuffix("weight") + "scale"
        if _EXPERT.match(name):
            if stored.dtype in _FP8 or scale not in weights:
                raise UnsupportedQuantization(method="fp8", why="experts that are not FP4")
            rows, packed = stored.shape
            weights[name] = Stored((rows, 2 * packed), "MXFP4")
            del weights[scale]
        elif stored.dtype in _FP8 and scale in weights:
            weights[name] = Stored(stored.shape, "Q8_0" if len(stored.shape) > 1 else None)
            del weights[scale]
        elif name.endswith(".tid2eid"):
            weights[name] = Stored(stored.shape, "I32")
        elif stored.dtype == "F32" or (stored.dtype == "BF16" and len(stored.shape) > 1):
            weights[name] = Stored(stored.shape, stored.dtype)
    c.put("expert_dtype", "fp4")


def _ratios(c: HfConfig) -> list[int]:
    ratios = c.items("compress_ratios")
    if ratios is None or len(ratios) < c.n("num_hidden_layers"):
        raise BadConfig(key="compress_ratios", why="does not name every layer")
    return [int(ratio) for ratio in ratios]


def _check_experts(c: HfConfig) -> None:
    """The converter takes experts in FP4 only."""
    quantization = c.get("quantization_config")
    given = quantization if isinstance(quantization, Mapping) else {}
    kind = c.get("expert_dtype", given.get("expert_dtype", "fp4" if given else "none"))
    if kind != "fp4":
        raise UnsupportedQuantization(method=str(given.get("quant_method", "none")), why="experts that are not FP4")


def _attention(b: Block, c: HfConfig) -> None:
    n_head, dim, rank = c.n("num_attention_heads"), c.n("head_dim"), c.n("q_lora_rank")
    groups = max(1, c.n("o_groups"))
    n_out = groups * c.n("o_lora_rank")
    b.put("attn_sinks.weight", (n_head,), "attn.attn_sink")
    b.put("attn_q_a.weight", (b.n_embd, rank), "attn.wq_a.weight", kind="Q8_0")
    b.put("attn_q_b.weight", (rank, n_head * dim), "attn.wq_b.weight", kind="Q8_0")
    b.norm("attn_q_a_norm", "attn.q_norm", rank)
    b.put("attn_kv.weight", (b.n_embd, dim), "attn.wkv.weight", kind="Q8_0")
    b.norm("attn_kv_a_norm", "attn.kv_norm", dim)
    b.put("attn_output_a.weight", (n_head * dim // groups, n_out), "attn.wo_a.weight", kind="Q8_0")
    b.put("attn_output_b.weight", (n_out, b.n_embd), "attn.wo_b.weight", kind="Q8_0")


def _compressor(b: Block, name: str, hf: str, *, dim: int, ratio: int) -> None:
    width = dim * (2 if ratio == _INDEXED_RATIO else 1)
    b.put(f"{name}_ape.weight", (width, ratio), f"{hf}.ape", kind="F32")
    b.put(f"{name}_kv.weight", (b.n_embd, width), f"{hf}.wkv.weight", kind="BF16")
    b.put(f"{name}_gate.weight", (b.n_embd, width), f"{hf}.wgate.weight", kind="BF16")
    b.norm(f"{name}_norm", f"{hf}.norm", dim)


def _indexer(b: Block, c: HfConfig, *, ratio: int) -> None:
    n_head, dim = c.n("index_n_heads"), c.n("index_head_dim")
    b.put("indexer.proj.weight", (b.n_embd, n_head), "attn.indexer.weights_proj.weight", kind="BF16")
    b.put("indexer.attn_q_b.weight", (c.n("q_lora_rank"), n_head * dim), "attn.indexer.wq_b.weight", kind="Q8_0")
    _compressor(b, "indexer_compressor", "attn.indexer.compressor", dim=dim, ratio=ratio)


def _hyper_connections(b: Block, c: HfConfig) -> None:
    n_stream = c.n("hc_mult")
    n_mix = (2 + n_stream) * n_stream
    for part in ("hc_attn", "hc_ffn"):
        b.put(f"{part}_fn.weight", (n_stream * b.n_embd, n_mix), f"{part}_fn", kind="F32")
        b.put(f"{part}_base.weight", (n_mix,), f"{part}_base")
        b.put(f"{part}_scale.weight", (3,), f"{part}_scale")


def _feed_forward(b: Block, c: HfConfig) -> None:
    """Routed by a table of the tokens in the first layers, by a corrected score in the others."""
    n_expert, n_ff = c.n("n_routed_experts"), c.n("moe_intermediate_size")
    b.put("ffn_gate_inp.weight", (b.n_embd, n_expert), "ffn.gate.weight", kind="BF16")
    if b.i < c.n("num_hash_layers"):
        shape = (c.n("num_experts_per_tok"), c.n("vocab_size"))
        b.put("ffn_gate_tid2eid.weight", shape, "ffn.gate.tid2eid", kind="I32")
    else:
        b.put("exp_probs_b.bias", (n_expert,), "ffn.gate.bias")
    b.put("exp_probs_b_vl.bias", (n_expert,), "ffn.gate.bias_vl", expected=False)
    n_shared = n_ff * c.n("n_shared_experts")
    for part, hf in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        of, to = (b.n_embd, n_ff) if part != "down" else (n_ff, b.n_embd)
        experts = Source(f"{b.prefix}ffn.experts.{{x}}.{hf}.weight", n_expert)
        name = f"blk.{b.i}.ffn_{part}_exps.weight"
        b.layout.put(name, (of, to, n_expert), experts, whole=False, kind="MXFP4")
        shape = (b.n_embd, n_shared) if part != "down" else (n_shared, b.n_embd)
        b.put(f"ffn_{part}_shexp.weight", shape, f"ffn.shared_experts.{hf}.weight", kind="Q8_0")


def deepseek4_tensors(c: HfConfig, t: Layout) -> None:
    _check_experts(c)
    n_vocab, n_stream = c.n("vocab_size"), c.n("hc_mult")
    t.put("token_embd.weight", (t.n_embd, n_vocab), "embed.weight", kind="BF16")
    t.norm("output_norm", "norm")
    t.put("output.weight", (t.n_embd, n_vocab), "head.weight", kind="BF16")
    t.put("output_hc_fn.weight", (n_stream * t.n_embd, n_stream), "hc_head_fn", kind="F32")
    t.put("output_hc_base.weight", (n_stream,), "hc_head_base")
    t.put("output_hc_scale.weight", (1,), "hc_head_scale")
    ratios = _ratios(c)
    for i in range(t.n_block):
        b = t.block(i, "layers")
        b.norm("attn_norm", "attn_norm")
        _attention(b, c)
        _hyper_connections(b, c)
        if ratios[i]:
            _compressor(b, "attn_compressor", "attn.compressor", dim=c.n("head_dim"), ratio=ratios[i])
        if ratios[i] == _INDEXED_RATIO:
            _indexer(b, c, ratio=ratios[i])
        b.norm("ffn_norm", "ffn_norm")
        _feed_forward(b, c)


def deepseek4_metadata(c: HfConfig, md: Metadata) -> None:
    n_layer, n_stream = c.n("num_hidden_layers"), c.n("hc_mult")
    md.values["general.file_type"] = FILE_TYPE_IDS["MXFP4"]
    md.put("rope.dimension_count", c.n("qk_rope_head_dim", default=c.n("head_dim") // 8))
    md.put("attention.q_lora_rank", c.n("q_lora_rank"))
    md.put("attention.sliding_window", c.n("sliding_window"))
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    md.put("expert_shared_count", c.n("n_shared_experts"))
    md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
    md.put("expert_weights_norm", c.get("norm_topk_prob"))
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        md.put(key, [f32(c.get("swiglu_limit"))] * n_layer)
    md.put("attention.indexer.head_count", c.n("index_n_heads"))
    md.put("attention.indexer.key_length", c.n("index_head_dim"))
    md.put("attention.indexer.top_k", c.n("index_topk"))
    md.put("attention.output_group_count", c.n("o_groups"))
    md.put("attention.output_lora_rank", c.n("o_lora_rank"))
    md.put("attention.compress_ratios", _ratios(c))
    md.put_f32("attention.compress_rope_freq_base", c.get("compress_rope_theta"))
    md.put("hyper_connection.count", n_stream)
    md.put("hyper_connection.sinkhorn_iterations", c.n("hc_sinkhorn_iters"))
    md.put_f32("hyper_connection.epsilon", c.get("hc_eps"))
    md.put("hash_layer_count", c.n("num_hash_layers"))
    md.put("embedding_length_out", c.n("hidden_size") * n_stream)


FAMILIES = {
    "DeepseekV4ForCausalLM": Family("deepseek4", deepseek4_tensors, deepseek4_metadata, read=read_checkpoint),
}
