"""Dense transformers with a build of their own: StarCoder 2, StableLM, Nemotron, Phi, EXAONE, GLM 4, Gemma."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import (
    attention,
    head_dim,
    heads_kv,
    nothing,
    plain_tensors,
    qk_norm_by_head,
    rope_frequencies,
    sliding_pattern,
)
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Layout
from quantplan.model.hf.metadata import HEADS, WIDTHS, Metadata, f32


def starcoder2_tensors(c: HfConfig, t: Layout) -> None:
    bias = c.flag("use_bias", default=True)
    t.ends(norm_bias=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=True)
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.mlp(c.n("intermediate_size"), up="mlp.c_fc", down="mlp.c_proj", bias=bias)


def stablelm_tensors(c: HfConfig, t: Layout) -> None:
    """The second norm is there only where the residuals are not parallel; norms of queries and keys are by head."""
    t.ends(norm_bias=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=True)
        attention(b, c, bias=c.flag("use_qkv_bias"))
        if c.flag("qk_layernorm"):
            for part, n in (("q", c.n("num_attention_heads")), ("k", heads_kv(c))):
                names = (f"self_attn.{part}_layernorm.norms.{x}.weight" for x in range(n))
                b.join(f"attn_{part}_norm.weight", (head_dim(c), n), *names)
        if not c.flag("use_parallel_residual"):
            b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.swiglu(c.n("intermediate_size"))


def _partial_rotary(c: HfConfig, default: float) -> float:
    return float(c.rope().get("partial_rotary_factor", default))


def stablelm_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep(*WIDTHS, *HEADS)
    rotary = _partial_rotary(c, 0.25)
    md.put("rope.dimension_count", int(rotary * (c.n("hidden_size") // c.n("num_attention_heads"))))
    md.put("use_parallel_residual", c.flag("use_parallel_residual", default=True))
    md.put_f32("attention.layer_norm_epsilon", c.first("layer_norm_eps", "norm_eps"))


def nemotron_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm_bias=True)
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=True)
        attention(b, c, bias=bias, out_bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.mlp(c.n("intermediate_size"), up="mlp.up_proj", down="mlp.down_proj", bias=c.flag("mlp_bias"))


def nemotron_metadata(c: HfConfig, md: Metadata) -> None:
    md.put_f32(
        "attention.layer_norm_epsilon",
        c.first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    )
    n_embd, n_head = c.n("hidden_size"), c.n("num_attention_heads")
    md.put("rope.dimension_count", int(_partial_rotary(c, 0.5) * n_embd) // n_head)
    factor = c.get("factor") or c.rope().get("factor")
    md.put("rope.scaling.type", "none" if factor is None else "linear")
    md.put_f32("rope.scaling.factor", factor)


def phi2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(norm="model.final_layernorm", norm_bias=True, head_bias=True, tied=False)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=True)
        attention(b, c, bias=True, out_bias=True, out="dense")
        b.mlp(c.n("intermediate_size"), up="mlp.fc1", down="mlp.fc2", bias=True)


def phi2_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep(*WIDTHS, *HEADS)
    n_embd, n_head = c.n("hidden_size", "n_embd"), c.n("num_attention_heads", "n_head")
    md.put("feed_forward_length", 4 * n_embd)
    md.put("attention.head_count_kv", n_head)
    md.put_f32("attention.layer_norm_epsilon", c.first("layer_norm_epsilon", "layer_norm_eps"))
    md.put("rope.dimension_count", int(_partial_rotary(c, 0.5) * n_embd) // n_head)
    md.values["tokenizer.ggml.add_bos_token"] = False


def phi3_tensors(c: HfConfig, t: Layout) -> None:
    """One matrix for q, k and v, one for gate and up."""
    t.ends()
    n_head, dim, n_ff = c.n("num_attention_heads"), head_dim(c), c.n("intermediate_size")
    rope = c.rope()
    if rope.get("long_factor"):
        for name in ("long", "short"):
            t.put(f"rope_factors_{name}.weight", (len(rope.get(f"{name}_factor", ())),))
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        b.linear("attn_qkv", "self_attn.qkv_proj", b.n_embd, (n_head + 2 * heads_kv(c)) * dim)
        b.linear("attn_output", "self_attn.o_proj", n_head * dim, b.n_embd)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.linear("ffn_up", "mlp.gate_up_proj", b.n_embd, 2 * n_ff)
        b.linear("ffn_down", "mlp.down_proj", n_ff, b.n_embd)


def phi3_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep(*WIDTHS, *HEADS, "attention.layer_norm_rms_epsilon", "rope.freq_base")
    rope = c.rope()
    original, longest = rope.get("original_max_position_embeddings"), c.n("max_position_embeddings")
    md.put("rope.scaling.original_context_length", original)
    n_embd, n_head = c.n("hidden_size", "n_embd"), c.n("num_attention_heads", "n_head")
    md.put("rope.dimension_count", int(float(rope.get("partial_rotary_factor", 1.0)) * n_embd) // n_head)
    md.put("attention.sliding_window", c.n("sliding_window", default=0))
    if rope.get("long_factor") and original:
        md.put_f32(
            "rope.scaling.attn_factor", _attention_factor(str(rope.get("rope_type", "")), longest / original, original)
        )


def _attention_factor(kind: str, scale: float, original: int) -> float:
    """Phi3MiniModel.generate_extra_tensors()."""
    from math import log, sqrt

    if scale <= 1.0:
        return 1.0
    return 0.1 * log(scale) + 1.0 if kind == "yarn" else sqrt(1 + log(scale) / log(original))


def exaone4_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    rope_frequencies(c, t)
    for i in range(t.n_block):
        b = t.block(i)
        attention(b, c)
        qk_norm_by_head(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.norm("post_ffw_norm", "post_feedforward_layernorm")
        b.swiglu(c.n("intermediate_size"))


def exaone4_metadata(c: HfConfig, md: Metadata) -> None:
    if c.get("sliding_window") is None:
        return
    md.put("attention.sliding_window", c.n("sliding_window"))
    pattern, n_layer = c.get("sliding_window_pattern"), c.n("num_hidden_layers")
    if isinstance(pattern, str) and pattern and c.items("layer_types") is None:
        md.put("attention.sliding_window_pattern", [pattern[i % len(pattern)] == "L" for i in range(n_layer)])
    else:
        sliding_pattern(md, c.layer_types())


def glm4_tensors(c: HfConfig, t: Layout) -> None:
    """Four norms a layer; gate and up in one matrix. The vision model's attention has its biases always."""
    t.ends()
    bias = c.flag("attention_bias") or c.model_type == "glm4v_text"
    n_ff = c.n("intermediate_size")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=bias)
        b.norm("post_attention_norm", "post_self_attn_layernorm")
        b.norm("ffn_norm", "post_attention_layernorm")
        b.linear("ffn_up", "mlp.gate_up_proj", b.n_embd, 2 * n_ff)
        b.linear("ffn_down", "mlp.down_proj", n_ff, b.n_embd)
        b.norm("post_ffw_norm", "post_mlp_layernorm")


def glm4_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("rope.dimension_count", int(head_dim(c) * _partial_rotary(c, 0.5)))


def gemma_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(tied=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        b.norm("ffn_norm", "post_attention_layernorm")
        b.swiglu(c.n("intermediate_size"))


def gemma2_tensors(c: HfConfig, t: Layout, *, qk_norm: bool = False) -> None:
    t.ends(tied=True)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c)
        if qk_norm:
            qk_norm_by_head(b, c)
        b.norm("post_attention_norm", "post_attention_layernorm")
        b.norm("ffn_norm", "pre_feedforward_layernorm")
        b.norm("post_ffw_norm", "post_feedforward_layernorm")
        b.swiglu(c.n("intermediate_size"))


_GEMMA_KEYS = (*WIDTHS, *HEADS, "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length")


def gemma_metadata(_: HfConfig, md: Metadata) -> None:
    md.keep(*_GEMMA_KEYS)


def gemma2_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep(*_GEMMA_KEYS)
    md.put_f32("attn_logit_softcapping", c.get("attn_logit_softcapping"))
    md.put_f32("final_logit_softcapping", c.get("final_logit_softcapping"))
    md.put("attention.sliding_window", c.n("sliding_window"))


def gemma3_metadata(c: HfConfig, md: Metadata) -> None:
    rope = c.rope()
    md.put("rope.freq_base", f32(rope.get("full_attention", rope).get("rope_theta", 1_000_000.0)))
    md.put_f32("final_logit_softcapping", c.get("final_logit_softcapping"))
    if c.get("sliding_window_pattern") != 1:
        md.put("attention.sliding_window", c.n("sliding_window"))


FAMILIES = {
    "Starcoder2ForCausalLM": Family("starcoder2", starcoder2_tensors, nothing),
    "StableLmForCausalLM": Family("stablelm", stablelm_tensors, stablelm_metadata),
    "StableLMEpochForCausalLM": Family("stablelm", stablelm_tensors, stablelm_metadata),
    "NemotronForCausalLM": Family("nemotron", nemotron_tensors, nemotron_metadata),
    "PhiForCausalLM": Family("phi2", phi2_tensors, phi2_metadata),
    "Phi3ForCausalLM": Family("phi3", phi3_tensors, phi3_metadata),
    "Exaone4ForCausalLM": Family("exaone4", exaone4_tensors, exaone4_metadata),
    "Glm4ForCausalLM": Family("glm4", glm4_tensors, glm4_metadata),
    "GemmaForCausalLM": Family("gemma", gemma_tensors, gemma_metadata),
    "Gemma2ForCausalLM": Family("gemma2", gemma2_tensors, gemma2_metadata),
    **dict.fromkeys(
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        Family("gemma3", lambda c, t: gemma2_tensors(c, t, qk_norm=True), gemma3_metadata),
    ),
    "Ernie4_5ForCausalLM": Family(
        "ernie4_5",
        lambda c, t: plain_tensors(
            c, t, bias=c.flag("use_bias"), out_bias=c.flag("use_bias"), mlp_bias=c.flag("use_bias")
        ),
        nothing,
    ),
}
