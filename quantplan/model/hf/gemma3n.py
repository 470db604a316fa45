"""Gemma 3n: alternating updates, Laurel, embeddings by layer, shared KV (conversion/gemma.py, commit 0c1e570)."""

from __future__ import annotations

from statistics import NormalDist

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import sliding_pattern
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata, f32


def _widths(c: HfConfig) -> list[int]:
    """Feed-forward width of each layer."""
    by_layer = c.items("intermediate_size")
    n_layer = c.n("num_hidden_layers")
    return [int(n) for n in by_layer] if by_layer is not None else [c.n("intermediate_size")] * n_layer


def _altup(b: Block, n_inputs: int) -> None:
    b.put("altup_correct_scale.weight", (b.n_embd,), "altup.correct_output_scale")
    b.put("altup_correct_coef.weight", (n_inputs, n_inputs), "altup.correction_coefs.weight")
    b.put("altup_router.weight", (b.n_embd, n_inputs), "altup.modality_router.weight")
    b.put("altup_predict_coef.weight", (n_inputs, n_inputs**2), "altup.prediction_coefs.weight")
    b.norm("altup_router_norm", "altup.router_norm")


def _layer(b: Block, c: HfConfig, *, n_ff: int, shared: bool) -> None:
    n_head, n_kv, dim = c.n("num_attention_heads"), c.n("num_key_value_heads"), c.n("head_dim")
    n_per_layer, rank = c.n("hidden_size_per_layer_input"), c.n("laurel_rank")
    _altup(b, c.n("altup_num_inputs"))
    b.norm("attn_norm", "input_layernorm")
    b.linear("laurel_l", "laurel.linear_left", b.n_embd, rank)
    b.linear("laurel_r", "laurel.linear_right", rank, b.n_embd)
    b.norm("laurel_post_norm", "laurel.post_laurel_norm")
    b.linear("attn_q", "self_attn.q_proj", b.n_embd, n_head * dim)
    b.norm("attn_q_norm", "self_attn.q_norm", dim)
    b.linear("attn_k", "self_attn.k_proj", b.n_embd, n_kv * dim, expected=not shared)
    b.norm("attn_k_norm", "self_attn.k_norm", dim, expected=not shared)
    b.linear("attn_v", "self_attn.v_proj", b.n_embd, n_kv * dim, expected=not shared)
    b.linear("attn_output", "self_attn.o_proj", n_head * dim, b.n_embd)
    b.norm("post_attention_norm", "post_attention_layernorm")
    b.norm("ffn_norm", "pre_feedforward_layernorm")
    b.swiglu(n_ff)
    b.norm("post_ffw_norm", "post_feedforward_layernorm")
    b.linear("inp_gate", "per_layer_input_gate", b.n_embd, n_per_layer)
    b.linear("proj", "per_layer_projection", n_per_layer, b.n_embd)
    b.norm("post_norm", "post_per_layer_input_norm")


def gemma3n_tensors(c: HfConfig, t: Layout) -> None:
    """Both embeddings are padded to the whole vocabulary; the three projections beside the first are stacked."""
    t.ends(tied=True)
    n_more, n_vocab = c.n("altup_num_inputs") - 1, c.n("vocab_size")
    width = c.n("hidden_size_per_layer_input") * t.n_block
    for name, hf in (("altup_proj", "altup_projections"), ("altup_unembd_proj", "altup_unembed_projections")):
        parts = (f"model.{hf}.{i}.weight" for i in range(n_more))
        t.join(f"{name}.weight", (t.n_embd, t.n_embd, n_more), *parts)
    t.put("per_layer_token_embd.weight", (width, n_vocab), "model.embed_tokens_per_layer.weight", whole=False)
    t.put("per_layer_model_proj.weight", (t.n_embd, width), "model.per_layer_model_projection.weight")
    t.norm("per_layer_proj_norm", "model.per_layer_projection_norm", c.n("hidden_size_per_layer_input"))
    first_shared = t.n_block - c.n("num_kv_shared_layers", default=0)
    widths = _widths(c)
    for i in range(t.n_block):
        _layer(t.block(i), c, n_ff=widths[i], shared=i >= first_shared)


def _sparsity(c: HfConfig) -> list[float]:
    """Standard deviations for each layer's share of activations that are cut off: ten layers at 95 %, then none."""
    n_layer = c.n("num_hidden_layers")
    shares = c.get("activation_sparsity_pattern")
    if not isinstance(shares, list):
        shares = [0.95] * min(10, n_layer) + [0.0] * max(0, n_layer - 10) if shares is None else [shares] * n_layer
    return [f32(NormalDist().inv_cdf(share)) if 0 < share < 1 else float("-inf") for share in shares]


def gemma3n_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("feed_forward_length", _widths(c))
    md.put_f32("final_logit_softcapping", c.get("final_logit_softcapping"))
    md.put("attention.sliding_window", c.n("sliding_window"))
    md.put("altup.active_idx", c.n("altup_active_idx", default=0))
    md.put("altup.num_inputs", c.n("altup_num_inputs"))
    md.put("embedding_length_per_layer_input", c.n("hidden_size_per_layer_input"))
    md.put("attention.shared_kv_layers", c.n("num_kv_shared_layers"))
    md.put("activation_sparsity_scale", _sparsity(c))
    sliding_pattern(md, c.layer_types(default_pattern=5))


FAMILIES = dict.fromkeys(
    ("Gemma3nForConditionalGeneration", "Gemma3nForCausalLM"), Family("gemma3n", gemma3n_tensors, gemma3n_metadata)
)
