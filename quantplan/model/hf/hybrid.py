"""Layers of two kinds: linear attention (Qwen3-Next, Qwen3.5) and short convolutions (LFM2)."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import attention, head_dim, heads_kv, qk_norm_by_head
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata
from quantplan.model.hf.moe import expert_widths, is_sparse, n_experts
from quantplan.model.hf.mtp import read_qwen_mtp


def lfm2_layers(c: HfConfig) -> list[bool]:
    """Which layers attend: `layer_types`, or `full_attn_idxs` in older files."""
    n_layer = c.n("num_hidden_layers")
    kinds = c.items("layer_types")
    if kinds is not None:
        return [kind == "full_attention" for kind in kinds]
    indices = c.items("full_attn_idxs")
    return [indices is None or i in indices for i in range(n_layer)]


def lfm2_ff(c: HfConfig) -> int:
    """LFM2Model._add_feed_forward_length()."""
    n_ff = c.n("block_ff_dim", "intermediate_size")
    if not c.flag("block_auto_adjust_ff_dim", default=True):
        return n_ff
    n_ff = int(2 * n_ff / 3)
    if c.get("block_ffn_dim_multiplier") is not None:
        n_ff = int(float(c.get("block_ffn_dim_multiplier")) * n_ff)
    multiple = c.n("block_multiple_of", default=256)
    return multiple * -(-n_ff // multiple)


def _short_conv(b: Block, c: HfConfig) -> None:
    bias = c.flag("conv_bias")
    b.put("shortconv.conv.weight", (c.n("conv_L_cache"), b.n_embd), "conv.conv.weight", whole=False)
    b.put("shortconv.conv.bias", (b.n_embd,), "conv.conv.bias", expected=bias)
    b.linear("shortconv.in_proj", "conv.in_proj", b.n_embd, 3 * b.n_embd, bias=bias)
    b.linear("shortconv.out_proj", "conv.out_proj", b.n_embd, b.n_embd, bias=bias)


def _lfm2_mixer(b: Block, c: HfConfig, *, attends: bool) -> None:
    b.norm("attn_norm", "operator_norm")
    if attends:
        attention(b, c, out="out_proj")
        qk_norm_by_head(b, c, ("q_layernorm", "k_layernorm"))
    else:
        _short_conv(b, c)
    b.norm("ffn_norm", "ffn_norm")


def lfm2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm=None, tied=c.flag("tie_word_embeddings", default=True))
    t.norm("token_embd_norm", "model.embedding_norm")
    attends = lfm2_layers(c)
    for i in range(t.n_block):
        b = t.block(i)
        _lfm2_mixer(b, c, attends=attends[i])
        b.swiglu(lfm2_ff(c), hf="feed_forward", names=("w1", "w3", "w2"))


def lfm2_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("attention.head_count_kv", [heads_kv(c) if yes else 0 for yes in lfm2_layers(c)])
    md.put("vocab_size", c.n("vocab_size"))
    md.put("shortconv.l_cache", c.n("conv_L_cache"))
    md.put_f32("attention.layer_norm_rms_epsilon", c.get("norm_eps"))
    md.put("feed_forward_length", lfm2_ff(c))


def lfm2_moe_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm=None, tied=c.flag("tie_word_embeddings", default=True))
    t.norm("token_embd_norm", "model.embedding_norm")
    attends, n_expert = lfm2_layers(c), n_experts(c)
    for i in range(t.n_block):
        b = t.block(i)
        _lfm2_mixer(b, c, attends=attends[i])
        if i < c.n("num_dense_layers"):
            b.swiglu(c.n("intermediate_size"), hf="feed_forward", names=("w1", "w3", "w2"))
            continue
        b.router(n_expert, "feed_forward.gate")
        if c.flag("use_expert_bias", default=True):
            b.put("exp_probs_b.bias", (n_expert,), "feed_forward.expert_bias")
        b.experts(n_expert, c.n("moe_intermediate_size"), hf="feed_forward.experts", names=("w1", "w3", "w2"))


def lfm2_moe_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("attention.head_count_kv", [heads_kv(c) if yes else 0 for yes in lfm2_layers(c)])
    md.put("expert_feed_forward_length", c.n("moe_intermediate_size"))
    md.put("leading_dense_block_count", c.n("num_dense_layers"))
    md.put("expert_gating_func", 2)  # gguf.ExpertGatingFuncType.SIGMOID
    md.put("vocab_size", c.n("vocab_size"))
    md.put("shortconv.l_cache", c.n("conv_L_cache"))


def linear_layers(c: HfConfig) -> list[bool]:
    """Which layers have linear attention: all but every fourth where nothing is said."""
    kinds = c.items("layer_types")
    if kinds is not None:
        return [kind == "linear_attention" for kind in kinds]
    every = max(1, c.n("full_attention_interval", default=4))
    return [bool((i + 1) % every) for i in range(c.n("num_hidden_layers"))]


def _mtp(c: HfConfig) -> int:
    return c.n("mtp_num_hidden_layers", default=0)


def qwen_next_blocks(c: HfConfig) -> int:
    return c.n("num_hidden_layers") + _mtp(c)


def _linear_attention(b: Block, c: HfConfig, *, split: bool) -> None:
    """The gated delta rule. split: q, k, v and z in tensors of their own, as Qwen3.5 keeps them."""
    n_k, n_v = c.n("linear_num_key_heads"), c.n("linear_num_value_heads")
    n_key, n_value = n_k * c.n("linear_key_head_dim"), n_v * c.n("linear_value_head_dim")
    n_conv = 2 * n_key + n_value
    hf = "linear_attn"
    if split:
        b.linear("attn_qkv", f"{hf}.in_proj_qkv", b.n_embd, n_conv)
        b.linear("attn_gate", f"{hf}.in_proj_z", b.n_embd, n_value)
        b.linear("ssm_beta", f"{hf}.in_proj_b", b.n_embd, n_v)
        b.linear("ssm_alpha", f"{hf}.in_proj_a", b.n_embd, n_v)
    else:
        b.put("attn_qkv.weight", (b.n_embd, n_conv), f"{hf}.in_proj_qkvz.weight", whole=False)
        b.put("attn_gate.weight", (b.n_embd, n_value), f"{hf}.in_proj_qkvz.weight", whole=False)
        b.linear("ssm_ba", f"{hf}.in_proj_ba", b.n_embd, 2 * n_v)
    b.put("ssm_conv1d.weight", (c.n("linear_conv_kernel_dim"), n_conv), f"{hf}.conv1d.weight", whole=False)
    b.put("ssm_dt.bias", (n_v,), f"{hf}.dt_bias")
    b.put("ssm_a", (n_v,), f"{hf}.A_log")
    b.norm("ssm_norm", f"{hf}.norm", c.n("linear_value_head_dim"))
    b.linear("ssm_out", f"{hf}.out_proj", n_value, b.n_embd)


def _gated_attention(b: Block, c: HfConfig) -> None:
    """The query projection carries a gate of its own width."""
    n_head, dim, n_kv = c.n("num_attention_heads"), head_dim(c), heads_kv(c)
    bias = c.flag("attention_bias")
    b.linear("attn_q", "self_attn.q_proj", b.n_embd, 2 * n_head * dim, bias=bias)
    b.linear("attn_k", "self_attn.k_proj", b.n_embd, n_kv * dim, bias=bias)
    b.linear("attn_v", "self_attn.v_proj", b.n_embd, n_kv * dim, bias=bias)
    b.linear("attn_output", "self_attn.o_proj", n_head * dim, b.n_embd, bias=bias)
    qk_norm_by_head(b, c)


def qwen_next_tensors(c: HfConfig, t: Layout, *, split: bool = False, moe: bool = True, with_mtp: bool = True) -> None:
    """with_mtp: whether the converter takes the multi-token prediction layers; it counts them in any case."""
    t.ends()
    linear = linear_layers(c)
    for i in range(t.n_block if with_mtp else len(linear)):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        if i < len(linear) and linear[i]:
            _linear_attention(b, c, split=split)
        else:
            _gated_attention(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        if moe and is_sparse(c, i):
            n_expert = n_experts(c)
            b.router(n_expert)
            b.experts(n_expert, c.n("moe_intermediate_size"))
            b.swiglu(c.n("shared_expert_intermediate_size"), hf="mlp.shared_expert", suffix="_shexp")
            b.put("ffn_gate_inp_shexp.weight", (b.n_embd, 1), "mlp.shared_expert_gate.weight")
        else:
            b.swiglu(c.n("intermediate_size"))
        if i >= len(linear):
            _nextn(b, first=i == len(linear))


def _nextn(b: Block, *, first: bool) -> None:
    """_QwenMtpMixin puts what the layers share to the first alone."""
    b.linear("nextn.eh_proj", "eh_proj", 2 * b.n_embd, b.n_embd, expected=first)
    b.norm("nextn.enorm", "enorm", expected=first)
    b.norm("nextn.hnorm", "hnorm", expected=first)
    b.norm("nextn.shared_head_norm", "shared_head.norm", expected=first)


def qwen_next_metadata(c: HfConfig, md: Metadata) -> None:
    if c.get("mtp_num_hidden_layers") is None:
        c.warnings.append(
            "the configuration does not tell of MTP layers, which the converter takes where there are any"
        )
    expert_widths(c, md)
    md.put("ssm.conv_kernel", c.n("linear_conv_kernel_dim"))
    md.put("ssm.state_size", c.n("linear_key_head_dim"))
    md.put("ssm.group_count", c.n("linear_num_key_heads"))
    md.put("ssm.time_step_rank", c.n("linear_num_value_heads"))
    md.put("ssm.inner_size", c.n("linear_value_head_dim") * c.n("linear_num_value_heads"))
    md.put("attention.recurrent_layers", [*linear_layers(c), *(False for _ in range(_mtp(c)))])
    md.put("full_attention_interval", c.n("full_attention_interval", default=4))
    md.put("rope.dimension_count", int(head_dim(c) * float(c.rope().get("partial_rotary_factor", 0.25))))
    md.put("nextn_predict_layers", _mtp(c) or None)


FAMILIES = {
    "Lfm2ForCausalLM": Family("lfm2", lfm2_tensors, lfm2_metadata),
    "LFM2ForCausalLM": Family("lfm2", lfm2_tensors, lfm2_metadata),
    "Lfm2MoeForCausalLM": Family("lfm2moe", lfm2_moe_tensors, lfm2_moe_metadata),
    "Qwen3NextForCausalLM": Family(
        "qwen3next", qwen_next_tensors, qwen_next_metadata, qwen_next_blocks, read=read_qwen_mtp
    ),
}
