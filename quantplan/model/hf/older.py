"""GPT-2 and its time, and models with a fused query, key and value (conversion/ at commit 0c1e570)."""

from __future__ import annotations

from functools import partial

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import (
    attention,
    head_dim,
    heads_kv,
    llama_metadata,
    nothing,
    plain_tensors,
    qk_norm_by_head,
    rope_frequencies,
)
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import HEADS, WIDTHS, Metadata


def gpt2_block(b: Block, n_qkv: int, n_ff: int, *, transposed: bool) -> None:
    """ln_1, c_attn, c_proj, ln_2, c_fc, c_proj. transposed: GPT-2's Conv1D keeps its weights the other way round."""
    n = b.n_embd
    b.norm("attn_norm", "ln_1", bias=True)
    for name, hf, n_in, n_out in (
        ("attn_qkv", "attn.c_attn", n, n_qkv),
        ("attn_output", "attn.c_proj", n, n),
        ("ffn_up", "mlp.c_fc", n, n_ff),
        ("ffn_down", "mlp.c_proj", n_ff, n),
    ):
        b.put(f"{name}.weight", (n_in, n_out), f"{hf}.weight", whole=not transposed)
        b.put(f"{name}.bias", (n_out,), f"{hf}.bias")
    b.norm("ffn_norm", "ln_2", bias=True)


def gpt2_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="transformer.wte", norm="transformer.ln_f", norm_bias=True, tied=True)
    t.put("position_embd.weight", (t.n_embd, c.n("n_positions", "n_ctx")), "transformer.wpe.weight")
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        gpt2_block(b, 3 * t.n_embd, c.n("n_inner", default=4 * t.n_embd), transposed=True)


def gpt2_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep("block_count", "embedding_length", "attention.head_count", "attention.layer_norm_epsilon")
    md.put("context_length", c.n("n_ctx", "n_positions"))
    md.put("feed_forward_length", 4 * c.n("n_embd"))


def bigcode_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="transformer.wte", norm="transformer.ln_f", norm_bias=True, tied=True)
    t.put("position_embd.weight", (t.n_embd, c.n("n_positions")), "transformer.wpe.weight")
    dim = t.n_embd // c.n("n_head")
    n_qkv = t.n_embd + 2 * dim if c.flag("multi_query", default=True) else 3 * t.n_embd
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        gpt2_block(b, n_qkv, c.n("n_inner", default=4 * t.n_embd), transposed=False)


def bigcode_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep("block_count", "embedding_length", "attention.head_count", "attention.layer_norm_epsilon")
    md.put("context_length", c.n("n_positions"))
    md.put("feed_forward_length", 4 * c.n("n_embd"))
    md.put("attention.head_count_kv", 1)


def neox_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="gpt_neox.embed_in", norm="gpt_neox.final_layer_norm", head="embed_out", norm_bias=True)
    bias, n_ff = c.flag("attention_bias", default=True), c.n("intermediate_size")
    for i in range(t.n_block):
        b = t.block(i, "gpt_neox.layers")
        b.norm("attn_norm", "input_layernorm", bias=True)
        b.linear("attn_qkv", "attention.query_key_value", b.n_embd, 3 * b.n_embd, bias=bias)
        b.linear("attn_output", "attention.dense", b.n_embd, b.n_embd, bias=bias)
        b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.mlp(n_ff, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True)


def neox_metadata(c: HfConfig, md: Metadata) -> None:
    """GPTNeoXModel writes no head_count_kv: as many as heads."""
    rotary = float(c.get("rotary_pct", c.rope().get("partial_rotary_factor", 0.25)))
    md.keep(*WIDTHS, "attention.head_count", "attention.layer_norm_epsilon")
    md.put("rope.dimension_count", int(rotary * (c.n("hidden_size") // c.n("num_attention_heads"))))
    md.put("use_parallel_residual", c.flag("use_parallel_residual", default=True))


def falcon_tensors(c: HfConfig, t: Layout) -> None:
    """One KV head (7B), one a group (40B), or as many as heads (the rw models)."""
    t.ends(embed="transformer.word_embeddings", norm="transformer.ln_f", norm_bias=True)
    n_head, n_kv = c.n("num_attention_heads", "n_head"), falcon_kv(c)
    dim, bias = t.n_embd // n_head, c.flag("bias")
    new, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", default=True)
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        if new and c.n("num_ln_in_parallel_attn", default=2) == 2:
            b.norm("attn_norm_2", "ln_attn", bias=True)
            b.norm("attn_norm", "ln_mlp", bias=True)
        else:
            b.norm("attn_norm", "input_layernorm", bias=True)
            if not (parallel or new):
                b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.linear("attn_qkv", "self_attention.query_key_value", b.n_embd, (n_head + 2 * n_kv) * dim, bias=bias)
        b.linear("attn_output", "self_attention.dense", b.n_embd, b.n_embd, bias=bias)
        n_ff = c.n("ffn_hidden_size", default=4 * b.n_embd)
        b.mlp(n_ff, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=bias)


def falcon_kv(c: HfConfig) -> int:
    if c.flag("new_decoder_architecture") or not c.flag("multi_query", default=True):
        return c.n("num_kv_heads", "n_head_kv", default=c.n("num_attention_heads", "n_head"))
    return 1


def falcon_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep("block_count", "embedding_length", "attention.layer_norm_epsilon")
    n_embd = c.n("hidden_size")
    md.put("context_length", 2048)  # FalconModel: not in config.json
    md.put("tensor_data_layout", "jploski")
    md.put("feed_forward_length", 4 * n_embd)
    md.put("attention.head_count", c.n("num_attention_heads", "n_head"))
    md.put("attention.head_count_kv", c.n("num_kv_heads", "n_head_kv", default=falcon_kv(c)))


def bloom_tensors(c: HfConfig, t: Layout) -> None:
    for alternative in ("transformer.",):
        t.ends(embed=f"{alternative}word_embeddings", norm=f"{alternative}ln_f", norm_bias=True, tied=True)
        t.norm("token_embd_norm", f"{alternative}word_embeddings_layernorm", bias=True)
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        b.norm("attn_norm", "input_layernorm", bias=True)
        b.linear("attn_qkv", "self_attention.query_key_value", b.n_embd, 3 * b.n_embd, bias=True)
        b.linear("attn_output", "self_attention.dense", b.n_embd, b.n_embd, bias=True)
        b.norm("ffn_norm", "post_attention_layernorm", bias=True)
        b.mlp(4 * b.n_embd, up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", bias=True)


def bloom_metadata(c: HfConfig, md: Metadata) -> None:
    md.keep("block_count", "embedding_length", "attention.layer_norm_epsilon")
    n_embd, n_head = c.n("hidden_size", "n_embed"), c.n("n_head", "num_attention_heads")
    md.put("context_length", c.n("seq_length", default=n_embd))
    md.put("embedding_length", n_embd)
    md.put("feed_forward_length", 4 * n_embd)
    md.put("attention.head_count", n_head)
    md.put("attention.head_count_kv", n_head)


def internlm2_tensors(c: HfConfig, t: Layout) -> None:
    """Queries, keys and values of a group lie together in wqkv; the converter parts them."""
    t.ends(embed="model.tok_embeddings", head="output")
    n_head, n_kv, dim = c.n("num_attention_heads"), heads_kv(c), head_dim(c)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "attention_norm")
        for part, n in (("q", n_head), ("k", n_kv), ("v", n_kv)):
            b.put(f"attn_{part}.weight", (b.n_embd, n * dim), "attention.wqkv.weight", whole=False)
            b.put(f"attn_{part}.bias", (n * dim,), "attention.wqkv.bias", expected=c.flag("bias"), whole=False)
        b.linear("attn_output", "attention.wo", n_head * dim, b.n_embd, bias=c.flag("bias"))
        b.norm("ffn_norm", "ffn_norm")
        b.swiglu(c.n("intermediate_size"), hf="feed_forward", names=("w1", "w3", "w2"))


def qwen1_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="transformer.wte", norm="transformer.ln_f", tied=False)
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        b.norm("attn_norm", "ln_1")
        b.linear("attn_qkv", "attn.c_attn", b.n_embd, 3 * b.n_embd, bias=True)
        b.linear("attn_output", "attn.c_proj", b.n_embd, b.n_embd)
        b.norm("ffn_norm", "ln_2")
        b.swiglu(c.n("intermediate_size") // 2, names=("w2", "w1", "c_proj"))


def exaone_tensors(c: HfConfig, t: Layout) -> None:
    t.ends(embed="transformer.wte", norm="transformer.ln_f")
    rope_frequencies(c, t)
    for i in range(t.n_block):
        b = t.block(i, "transformer.h")
        b.norm("attn_norm", "ln_1")
        b.attention(
            n_head=c.n("num_attention_heads"),
            n_head_kv=heads_kv(c),
            head_dim=head_dim(c),
            hf="attn.attention",
            out="out_proj",
        )
        b.norm("ffn_norm", "ln_2")
        b.swiglu(c.n("intermediate_size"), names=("c_fc_0", "c_fc_1", "c_proj"))


def exaone_metadata(c: HfConfig, md: Metadata) -> None:
    rotary = float(c.rope().get("partial_rotary_factor", 1.0))
    md.put("rope.dimension_count", int(rotary * (c.n("hidden_size") // c.n("num_attention_heads"))))


def ungated_tensors(c: HfConfig, t: Layout, *, norm_bias: bool = False, bias: bool = False) -> None:
    """Llama with an up and a down projection only: Arcee, Jais 2."""
    t.ends(norm_bias=norm_bias)
    if not norm_bias:
        rope_frequencies(c, t)
    attn_bias, mlp_bias = c.flag("attention_bias", default=bias), c.flag("mlp_bias", default=bias)
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm", bias=norm_bias)
        attention(b, c, bias=attn_bias, out_bias=attn_bias)
        b.norm("ffn_norm", "post_attention_layernorm", bias=norm_bias)
        b.mlp(c.n("intermediate_size"), up="mlp.up_proj", down="mlp.down_proj", bias=mlp_bias)


def apertus_tensors(c: HfConfig, t: Layout) -> None:
    """The activation's four numbers a layer become key-values: their values are in the weights."""
    t.ends()
    rope_frequencies(c, t)
    bias = c.flag("attention_bias")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "attention_layernorm")
        attention(b, c, bias=bias, out_bias=bias)
        qk_norm_by_head(b, c)
        b.norm("ffn_norm", "feedforward_layernorm")
        b.mlp(c.n("intermediate_size"), up="mlp.up_proj", down="mlp.down_proj")


def jais2_metadata(c: HfConfig, md: Metadata) -> None:
    md.put("rope.dimension_count", head_dim(c))


def chatglm_tensors(c: HfConfig, t: Layout) -> None:
    t.ends()
    n_ff = c.n("intermediate_size")
    for i in range(t.n_block):
        b = t.block(i)
        b.norm("attn_norm", "input_layernorm")
        attention(b, c, bias=c.flag("attention_bias"))
        b.norm("ffn_norm", "post_attention_layernorm")
        b.linear("ffn_up", "mlp.gate_up_proj", b.n_embd, 2 * n_ff)
        b.linear("ffn_down", "mlp.down_proj", n_ff, b.n_embd)


def chatglm_metadata(c: HfConfig, md: Metadata) -> None:
    rope = c.rope()
    md.keep(*WIDTHS, *HEADS)
    md.put("context_length", c.n("seq_length", "hidden_size"))  # ChatGLMModel falls back on the width
    md.put_f32("attention.layer_norm_rms_epsilon", c.get("layernorm_epsilon", 1e-5))
    md.put("rope.dimension_count", int(head_dim(c) * float(rope.get("partial_rotary_factor", 0.5))))
    md.values["tokenizer.ggml.add_bos_token"] = False
    md.put_f32("rope.freq_base", rope.get("rope_theta", 10000.0))


FAMILIES = {
    "GPT2LMHeadModel": Family("gpt2", gpt2_tensors, gpt2_metadata),
    "GPTBigCodeForCausalLM": Family("starcoder", bigcode_tensors, bigcode_metadata),
    "GPTNeoXForCausalLM": Family("gptneox", neox_tensors, neox_metadata),
    **dict.fromkeys(("FalconForCausalLM", "RWForCausalLM"), Family("falcon", falcon_tensors, falcon_metadata)),
    "BloomForCausalLM": Family("bloom", bloom_tensors, bloom_metadata),
    "InternLM2ForCausalLM": Family("internlm2", internlm2_tensors, nothing),
    "InternLM3ForCausalLM": Family("llama", partial(plain_tensors, rope=True), llama_metadata),
    "QWenLMHeadModel": Family("qwen", qwen1_tensors, nothing),
    "ExaoneForCausalLM": Family("exaone", exaone_tensors, exaone_metadata),
    "ArceeForCausalLM": Family("arcee", ungated_tensors, llama_metadata),
    "ApertusForCausalLM": Family("apertus", apertus_tensors, llama_metadata),
    "Jais2ForCausalLM": Family("jais2", partial(ungated_tensors, norm_bias=True, bias=True), jais2_metadata),
    "GlmForCausalLM": Family("chatglm", chatglm_tensors, chatglm_metadata),
}
