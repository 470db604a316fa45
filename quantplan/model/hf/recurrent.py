"""State-space models and their hybrids: conversion/mamba.py, falcon_h1.py, granite.py, lfm2.py, jamba.py (0c1e570)."""

from __future__ import annotations

from quantplan.errors import BadConfig
from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import attention, granite_metadata, head_dim, heads_kv, rope_frequencies
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import HEADS, WIDTHS, Metadata

_N_CTX_UNBOUNDED = 2**20  # MambaModel.set_gguf_parameters(): no limit of its own


def _ceil_div(n: int, by: int) -> int:
    return -(-n // by)


def mamba1_mixer(b: Block, hf: str, *, n_inner: int, n_state: int, n_conv: int, n_dt: int, norms: bool = False) -> None:
    """The first Mamba's mixer; norms: of B, C and dt, as FalconMamba and Jamba have them."""
    b.linear("ssm_in", f"{hf}.in_proj", b.n_embd, 2 * n_inner)
    b.put("ssm_conv1d.weight", (n_conv, n_inner), f"{hf}.conv1d.weight", whole=False)
    b.put("ssm_conv1d.bias", (n_inner,), f"{hf}.conv1d.bias")
    b.linear("ssm_x", f"{hf}.x_proj", n_inner, n_dt + 2 * n_state)
    b.linear("ssm_dt", f"{hf}.dt_proj", n_dt, n_inner, bias=True)
    b.put("ssm_a", (n_state, n_inner), f"{hf}.A_log")
    b.put("ssm_d", (n_inner,), f"{hf}.D")
    b.linear("ssm_out", f"{hf}.out_proj", n_inner, b.n_embd)
    if norms:
        for part, n in (("dt", n_dt), ("b", n_state), ("c", n_state)):
            b.put(f"ssm_{part}_norm.weight", (n,), f"{hf}.{part}_layernorm.weight")


def mamba2_mixer(
    b: Block,
    hf: str,
    *,
    n_inner: int,
    n_state: int,
    n_conv: int,
    n_group: int,
    n_head: int,
    norm: bool = True,
    conv_bias: bool = True,
    bias: bool = False,
) -> None:
    n_conv_dim = n_inner + 2 * n_group * n_state
    b.linear("ssm_in", f"{hf}.in_proj", b.n_embd, n_inner + n_conv_dim + n_head, bias=bias)
    b.put("ssm_conv1d.weight", (n_conv, n_conv_dim), f"{hf}.conv1d.weight", whole=False)
    b.put("ssm_conv1d.bias", (n_conv_dim,), f"{hf}.conv1d.bias", expected=conv_bias)
    b.put("ssm_dt.bias", (n_head,), f"{hf}.dt_bias")
    b.put("ssm_a", (1, n_head), f"{hf}.A_log", whole=False)
    b.put("ssm_d", (1, n_head), f"{hf}.D", whole=False)
    if norm:
        b.put("ssm_norm.weight", (n_inner // n_group, n_group), f"{hf}.norm.weight", whole=False)
    b.linear("ssm_out", f"{hf}.out_proj", n_inner, b.n_embd, bias=bias)


def mamba_tensors(c: HfConfig, t: Layout) -> None:
    n_embd = t.n_embd
    t.ends(embed="backbone.embeddings", norm="backbone.norm_f", tied=c.flag("tie_word_embeddings", default=True))
    for i in range(t.n_block):
        b = t.block(i, "backbone.layers")
        b.norm("attn_norm", "norm")
        mamba1_mixer(
            b,
            "mixer",
            n_inner=c.n("intermediate_size", "d_inner", default=2 * n_embd),
            n_state=c.n("state_size", "d_state", default=16),
            n_conv=c.n("conv_kernel", "d_conv", default=4),
            n_dt=_dt_rank(c, n_embd),
        )


def _dt_rank(c: HfConfig, n_embd: int) -> int:
    value = c.first("time_step_rank", "dt_rank", "mamba_dt_rank")
    return int(value) if isinstance(value, int) else _ceil_div(n_embd, 16)


def mamba_metadata(c: HfConfig, md: Metadata) -> None:
    n_embd = c.n("hidden_size", "d_model")
    md.keep(*WIDTHS)
    md.put("context_length", _N_CTX_UNBOUNDED)
    md.put("embedding_length", n_embd)
    md.put("feed_forward_length", 0)
    md.put("attention.head_count", 0)
    md.put("ssm.conv_kernel", c.n("conv_kernel", "d_conv", default=4))
    md.put("ssm.inner_size", c.n("intermediate_size", "d_inner", default=2 * n_embd))
    md.put("ssm.state_size", c.n("state_size", "d_state", default=16))
    md.put("ssm.time_step_rank", _dt_rank(c, n_embd))
    md.put_f32("attention.layer_norm_rms_epsilon", c.first("layer_norm_epsilon", "rms_norm_eps") or 1e-5)
    md.put("ssm.dt_b_c_rms", c.model_type == "falcon_mamba")


def _mamba2_inner(c: HfConfig) -> int:
    expand = c.n("mamba_expand", "expand", default=2)
    return c.n("mamba_d_ssm", "intermediate_size", "d_inner", default=expand * c.n("hidden_size", "d_model", "dim"))


def mamba2_tensors(c: HfConfig, t: Layout) -> None:
    n_inner = _mamba2_inner(c)
    t.ends(embed="backbone.embeddings", norm="backbone.norm_f")
    for i in range(t.n_block):
        b = t.block(i, "backbone.layers")
        b.norm("attn_norm", "norm")
        mamba2_mixer(
            b,
            "mixer",
            n_inner=n_inner,
            n_state=c.n("state_size", "d_state", default=128),
            n_conv=c.n("conv_kernel", "d_conv", default=4),
            n_group=c.n("n_groups", default=1),
            n_head=n_inner // c.n("mamba_d_head", "head_dim", default=64),
        )


def mamba2_metadata(c: HfConfig, md: Metadata) -> None:
    n_inner = _mamba2_inner(c)
    md.keep(*WIDTHS)
    md.put("context_length", _N_CTX_UNBOUNDED)
    md.put("embedding_length", c.n("hidden_size", "d_model", "dim"))
    md.put("feed_forward_length", 0)
    md.put("attention.head_count", 0)
    md.put("ssm.conv_kernel", c.n("conv_kernel", "d_conv", default=4))
    md.put("ssm.inner_size", n_inner)
    md.put("ssm.state_size", c.n("state_size", "d_state", default=128))
    md.put("ssm.time_step_rank", n_inner // c.n("mamba_d_head", "head_dim", default=64))
    md.put("ssm.group_count", c.n("n_groups", default=1))
    md.put_f32("attention.layer_norm_rms_epsilon", c.first("layer_norm_epsilon", "rms_norm_eps") or 1e-5)


def falcon_h1_tensors(c: HfConfig, t: Layout) -> None:
    """Attention and Mamba side by side in every layer."""
    t.ends(norm="model.final_layernorm")
    n_inner = c.n("mamba_d_ssm", default=c.n("mamba_expand", default=2) * t.n_embd)
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        mamba2_mixer(
            b,
            "mamba",
            n_inner=n_inner,
            n_state=c.n("mamba_d_state"),
            n_conv=c.n("mamba_d_conv"),
            n_group=c.n("mamba_n_groups"),
            n_head=c.n("mamba_n_heads"),
            norm=c.flag("mamba_rms_norm"),
            conv_bias=c.flag("mamba_conv_bias", default=True),
        )
        b.put("ffn_norm", (b.n_embd,), "pre_ff_layernorm.weight")  # named without .weight in the tensor map
        b.swiglu(c.n("intermediate_size"), hf="feed_forward", bias=c.flag("mlp_bias"))


def falcon_h1_metadata(c: HfConfig, md: Metadata) -> None:
    rope = c.rope()
    md.keep(*WIDTHS, *HEADS, "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon")
    n_inner = c.n("mamba_d_ssm", default=c.n("mamba_expand", default=2) * c.n("hidden_size"))
    md.put("ssm.conv_kernel", c.n("mamba_d_conv", default=4))
    md.put("ssm.inner_size", n_inner)
    md.put("ssm.state_size", c.n("mamba_d_state", default=128))
    md.put("ssm.time_step_rank", n_inner // c.n("mamba_d_head", "head_dim", default=64))
    md.put("ssm.group_count", c.n("mamba_n_groups", default=1))
    md.put("attention.key_length", head_dim(c))
    md.put("attention.value_length", head_dim(c))
    md.put_f32("rope.freq_base", rope.get("rope_theta"))


def granite_layers(c: HfConfig) -> list[bool]:
    """Which layers attend: by type, by index or by period (GraniteHybridModel.get_attn_layers)."""
    n_layer = c.n("num_hidden_layers")
    kinds = c.items("layer_types") or c.items("layers_block_type")
    if kinds:
        return [kind in ("attention", "full_attention") for kind in kinds]
    indices = c.items("attn_layer_indices")
    if indices:
        return [i in indices for i in range(n_layer)]
    if c.get("attn_layer_period") is None:
        raise BadConfig(key="layer_types", why="is missing, and so is what it could be derived from")
    period, offset = c.n("attn_layer_period"), c.n("attn_layer_offset")
    return [i % period == offset for i in range(n_layer)]


def granite_hybrid_tensors(c: HfConfig, t: Layout) -> None:
    bamba = c.model_type == "bamba"
    attends = granite_layers(c)
    t.ends(norm="model.final_layernorm" if bamba else "model.norm")
    n_expert = c.n("num_local_experts", default=0)
    n_inner = c.n("mamba_expand", default=2) * t.n_embd
    if all(attends):
        rope_frequencies(c, t)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        if attends[i]:
            attention(b, c, bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"))
        else:
            mamba2_mixer(
                b,
                "mamba",
                n_inner=n_inner,
                n_state=c.n("mamba_d_state"),
                n_conv=c.n("mamba_d_conv"),
                n_group=c.n("mamba_n_groups"),
                n_head=c.n("mamba_n_heads"),
                conv_bias=c.flag("mamba_conv_bias", default=True),
                bias=c.flag("mamba_proj_bias"),
            )
        b.norm("ffn_norm", "pre_ff_layernorm" if bamba else "post_attention_layernorm")
        if bamba:
            b.swiglu(c.n("intermediate_size"), hf="feed_forward")
        else:
            granite_experts(b, c, n_expert)


def granite_experts(b: Block, c: HfConfig, n_expert: int) -> None:
    """Granite fuses gate and up in the checkpoint; without experts the shared one is the feed-forward."""
    n_ff, n_shared = c.n("intermediate_size"), c.n("shared_intermediate_size", default=0)
    if n_expert:
        b.router(n_expert, "block_sparse_moe.router.layer")
        for part in ("gate", "up"):
            b.put(
                f"ffn_{part}_exps.weight",
                (b.n_embd, n_ff, n_expert),
                "block_sparse_moe.input_linear.weight",
                whole=False,
            )
        b.put("ffn_down_exps.weight", (n_ff, b.n_embd, n_expert), "block_sparse_moe.output_linear.weight")
    if n_shared:
        suffix = "_shexp" if n_expert else ""
        for part in ("gate", "up"):
            b.put(f"ffn_{part}{suffix}.weight", (b.n_embd, n_shared), "shared_mlp.input_linear.weight", whole=False)
        b.put(f"ffn_down{suffix}.weight", (n_shared, b.n_embd), "shared_mlp.output_linear.weight")


def granite_arch(c: HfConfig) -> str:
    """Without Mamba layers it is a plain Granite."""
    if not all(granite_layers(c)):
        return "granitehybrid"
    return "granitemoe" if c.first("num_experts_per_tok", "num_experts_per_token") else "granite"


def granite_hybrid_metadata(c: HfConfig, md: Metadata) -> None:
    """As a converter on transformers 4 writes them, and as the files on the hub have them.

    transformers 5 renames the layer types, and the pinned converter (granite.py, get_attn_layers) then finds no
    attention layer: it writes no KV heads, and the engine refuses the file.
    """
    attends = granite_layers(c)
    if c.model_type == "granitemoehybrid":
        c.warnings.append(
            "the pinned converter on transformers 5 writes this model without KV heads and the engine refuses the file;"
            " these are the facts of a right conversion"
        )
    granite_metadata(c, md)
    md.put("expert_shared_feed_forward_length", c.n("shared_intermediate_size", default=0) or None)
    md.put("ssm.conv_kernel", c.n("mamba_d_conv"))
    md.put("ssm.state_size", c.n("mamba_d_state"))
    md.put("ssm.group_count", c.n("mamba_n_groups"))
    md.put("ssm.inner_size", c.n("mamba_expand", default=2) * c.n("hidden_size"))
    md.put("ssm.time_step_rank", c.n("mamba_n_heads"))
    md.put("attention.head_count_kv", [heads_kv(c) if yes else 0 for yes in attends])
    md.put("rope.dimension_count", c.get("attn_rotary_emb"))
    use_rope = c.model_type == "bamba" or all(attends)
    md.put("rope.scaling.finetuned", use_rope)
    if not use_rope:
        md.put("context_length", _N_CTX_UNBOUNDED)


_GRANITE_HYBRID = Family("granitehybrid", granite_hybrid_tensors, granite_hybrid_metadata, arch_of=granite_arch)

FAMILIES = {
    "MambaForCausalLM": Family("mamba", mamba_tensors, mamba_metadata),
    "Mamba2ForCausalLM": Family("mamba2", mamba2_tensors, mamba2_metadata),
    "FalconH1ForCausalLM": Family("falcon-h1", falcon_h1_tensors, falcon_h1_metadata),
    "GraniteMoeHybridForCausalLM": _GRANITE_HYBRID,
    "BambaForCausalLM": _GRANITE_HYBRID,
}
