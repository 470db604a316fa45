"""Mamba beside attention, layer by layer: Jamba, Nemotron-H; and FalconMamba (commit 0c1e570)."""

from __future__ import annotations

from quantplan.errors import BadConfig
from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import attention, heads_kv
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import OUTTYPE, Block, Layout, Source
from quantplan.model.hf.metadata import WIDTHS, Metadata
from quantplan.model.hf.moe import n_experts, nextn, nextn_block
from quantplan.model.hf.mtp import read_nemotron_mtp
from quantplan.model.hf.quantized import Weights
from quantplan.model.hf.recurrent import mamba1_mixer, mamba2_mixer, mamba_metadata, mamba_tensors

_KINDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}  # hybrid_override_pattern


def jamba_attends(c: HfConfig, i: int) -> bool:
    offset, period = c.n("attn_layer_offset"), max(1, c.n("attn_layer_period"))
    return i >= offset and (i - offset) % period == 0


def jamba_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm="model.final_layernorm")
    n_expert, n_ff = n_experts(c), c.n("intermediate_size")
    offset, period = c.n("expert_layer_offset"), max(1, c.n("expert_layer_period"))
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        if jamba_attends(c, i):
            attention(b, c)
        else:
            mamba1_mixer(
                b,
                "mamba",
                n_inner=c.n("mamba_expand") * b.n_embd,
                n_state=c.n("mamba_d_state", default=16),
                n_conv=c.n("mamba_d_conv", default=4),
                n_dt=_dt_rank(c, b.n_embd),
                norms=True,
            )
        b.norm("ffn_norm", "pre_ff_layernorm")
        if n_expert > 1 and i >= offset and (i - offset) % period == 0:
            b.router(n_expert, "feed_forward.router")
            b.experts(n_expert, n_ff, hf="feed_forward.experts")
        else:
            b.swiglu(n_ff, hf="feed_forward")


def _dt_rank(c: HfConfig, n_embd: int) -> int:
    value = c.get("mamba_dt_rank")
    return int(value) if isinstance(value, int) else -(-n_embd // 16)


def jamba_metadata(c: HfConfig, md: Metadata) -> None:
    n_embd = c.n("hidden_size")
    md.keep(*WIDTHS, "attention.head_count", "expert_count", "expert_used_count")
    kv = [heads_kv(c) if jamba_attends(c, i) else 0 for i in range(c.n("num_hidden_layers"))]
    md.put("attention.head_count_kv", kv)
    md.put("ssm.conv_kernel", c.n("mamba_d_conv", default=4))
    md.put("ssm.inner_size", c.n("mamba_expand") * n_embd)
    md.put("ssm.state_size", c.n("mamba_d_state", default=16))
    md.put("ssm.time_step_rank", _dt_rank(c, n_embd))
    md.put_f32("attention.layer_norm_rms_epsilon", c.first("layer_norm_epsilon", "rms_norm_eps") or 1e-6)


def falcon_mamba_metadata(c: HfConfig, md: Metadata) -> None:
    mamba_metadata(c, md)


def nemotron_h_layers(c: HfConfig) -> list[str]:
    """mamba, attention, mlp or moe for each layer, of the pattern's letters or the types' names."""
    pattern = c.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [_KINDS.get(letter, letter) for letter in pattern]
    names = {"linear_attention": "mamba", "full_attention": "attention"}
    return [names.get(str(kind), str(kind)) for kind in c.items("layers_block_type") or c.items("layer_types") or ()]


def nemotron_h_tensors(c: HfConfig, t: Layout) -> None:
    """One thing a layer: a mixer, attention, a feed-forward or experts."""
    t.ends(embed="backbone.embeddings", norm="backbone.norm_f")
    kinds = nemotron_h_layers(c)
    n_inner = c.n("mamba_num_heads") * c.n("mamba_head_dim")
    for i, kind in enumerate(kinds):
        b = t.block(i, "backbone.layers")
        b.norm("attn_norm", "norm")
        if kind == "mamba":
            mamba2_mixer(
                b,
                "mixer",
                n_inner=n_inner,
                n_state=c.n("ssm_state_size"),
                n_conv=c.n("conv_kernel"),
                n_group=c.n("n_groups"),
                n_head=c.n("mamba_num_heads"),
                conv_bias=c.flag("use_conv_bias", default=True),
                bias=c.flag("mamba_proj_bias"),
            )
        elif kind == "attention":
            _nemotron_attention(b, c)
        elif kind == "moe":
            _nemotron_experts(b, c)
        else:
            b.mlp(c.n("intermediate_size"), up="mixer.up_proj", down="mixer.down_proj", bias=c.flag("mlp_bias"))
    for i in range(len(kinds), t.n_block):
        b = t.block(i, "backbone.layers")
        b.norm("attn_norm", "norm")
        _nemotron_attention(b, c)
        nextn_block(b, shared=False)
        b.norm("post_attention_norm", "post_attention_layernorm")
        _nemotron_experts(b, c, router_kind=OUTTYPE)


def _nemotron_attention(b: Block, c: HfConfig) -> None:
    b.attention(
        n_head=c.n("num_attention_heads"),
        n_head_kv=heads_kv(c),
        head_dim=c.n("head_dim", "attention_head_dim"),
        hf="mixer",
        bias=c.flag("attention_bias"),
        out_bias=c.flag("attention_bias"),
    )


def _nemotron_experts(b: Block, c: HfConfig, *, router_kind: str | None = None) -> None:
    """Experts without a gate; with a latent they work in its width.

    router_kind: the converter looks for routers under the number in the checkpoint's name; the one of the MTP layer
    has another number, is not found and gets the outtype.
    """
    n_expert, n_ff = c.n("n_routed_experts"), c.n("moe_intermediate_size")
    n_latent = c.n("moe_latent_size", default=0)
    width = n_latent or b.n_embd
    if n_latent:
        b.linear("ffn_latent_down", "mixer.fc1_latent_proj", b.n_embd, n_latent)
        b.linear("ffn_latent_up", "mixer.fc2_latent_proj", n_latent, b.n_embd)
    for part, shape in (("up", (width, n_ff, n_expert)), ("down", (n_ff, width, n_expert))):
        b.layout.put(
            f"blk.{b.i}.ffn_{part}_exps.weight",
            shape,
            Source(f"{b.prefix}mixer.experts.{{x}}.{part}_proj.weight", n_expert),
            whole=False,
        )
    b.put("ffn_gate_inp.weight", (b.n_embd, n_expert), "mixer.gate.weight", kind=router_kind)
    b.put("exp_probs_b.bias", (n_expert,), "mixer.gate.e_score_correction.bias")
    n_shared = c.n("moe_shared_expert_intermediate_size", default=0)
    if n_shared:
        b.linear("ffn_up_shexp", "mixer.shared_experts.up_proj", b.n_embd, n_shared)
        b.linear("ffn_down_shexp", "mixer.shared_experts.down_proj", n_shared, b.n_embd)


def nemotron_h_is_moe(c: HfConfig) -> bool:
    """NemotronHModel takes every model for a mixture whose configuration counts experts a token."""
    return c.get("num_experts_per_tok") is not None


def nemotron_h_nextn(c: HfConfig) -> int:
    """The MTP layer of a mixture; the converter takes one at most."""
    n = nextn(c) if nemotron_h_is_moe(c) else 0
    if n > 1:
        raise BadConfig(key="num_nextn_predict_layers", why=f"is {n}: the converter takes one such layer")
    return n


def nemotron_h_blocks(c: HfConfig) -> int:
    return len(nemotron_h_layers(c)) + nemotron_h_nextn(c)


def nemotron_h_read(c: HfConfig, weights: Weights) -> None:
    if nemotron_h_nextn(c):
        read_nemotron_mtp(weights, n_block=nemotron_h_blocks(c))


def nemotron_h_metadata(c: HfConfig, md: Metadata) -> None:
    kinds = nemotron_h_layers(c)
    is_moe = nemotron_h_is_moe(c)
    dim = c.n("head_dim", "attention_head_dim")
    md.put("context_length", 2**20)
    md.put("vocab_size", c.n("vocab_size"))
    md.put("rope.dimension_count", dim)
    md.drop("rope.freq_base")
    md.put("ssm.conv_kernel", c.n("conv_kernel"))
    md.put("ssm.state_size", c.n("ssm_state_size"))
    md.put("ssm.group_count", c.n("n_groups"))
    md.put("ssm.inner_size", c.n("mamba_num_heads") * c.n("mamba_head_dim"))
    md.put("ssm.time_step_rank", c.n("mamba_num_heads"))
    n_nextn = nemotron_h_nextn(c)
    kv = [heads_kv(c) if kind == "attention" else 0 for kind in kinds]
    md.put("attention.head_count_kv", kv + [heads_kv(c)] * n_nextn)
    md.put("nextn_predict_layers", n_nextn or None)
    md.put("rope.scaling.finetuned", False)
    md.put("attention.key_length", dim)
    md.put("attention.value_length", dim)
    n_ff, feeds = (c.n("moe_intermediate_size"), "moe") if is_moe else (c.n("intermediate_size"), "mlp")
    md.put("feed_forward_length", [n_ff if kind == feeds else 0 for kind in kinds] + [n_ff] * n_nextn)
    if is_moe:
        md.put("expert_feed_forward_length", n_ff)
        md.put("expert_shared_feed_forward_length", c.n("moe_shared_expert_intermediate_size"))
        md.put("expert_shared_count", c.n("n_shared_experts"))
        md.put("expert_weights_norm", c.get("norm_topk_prob"))
        md.put_f32("expert_weights_scale", c.get("routed_scaling_factor"))
        md.put("moe_latent_size", c.get("moe_latent_size"))


def falcon_mamba_tensors(c: HfConfig, t: Layout) -> None:
    """The norms of B, C and dt have no weights in the checkpoint."""
    mamba_tensors(c, t)


FAMILIES = {
    "JambaForCausalLM": Family("jamba", jamba_tensors, jamba_metadata),
    "NemotronHForCausalLM": Family(
        "nemotron_h",
        nemotron_h_tensors,
        nemotron_h_metadata,
        nemotron_h_blocks,
        lambda c: "nemotron_h_moe" if nemotron_h_is_moe(c) else "nemotron_h",
        nemotron_h_read,
    ),
    "FalconMambaForCausalLM": Family("mamba", falcon_mamba_tensors, falcon_mamba_metadata),
}
