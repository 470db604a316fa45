"""Multi-head latent attention (src/models/deepseek2.cpp, llama.cpp 0c1e570), with and without absorption."""

from __future__ import annotations

from quantplan.memory.blocks import AttnInput, Blocks
from quantplan.memory.graph import Tensor
from quantplan.model.facts import LayerFacts


def latent_attention(
    b: Blocks, il: int, prefix: str, cur: Tensor, layer: LayerFacts, inp: AttnInput, pos: Tensor
) -> Tensor:
    """One layer's attention, output projection included. Without V in the cache the latent is decompressed after."""
    g, t = b.g, b.p.n_tokens
    heads, rope_dim = layer.n_head, int(b.number("rope.dimension_count"))
    rank = int(b.number("attention.kv_lora_rank"))
    key = int(b.number("attention.key_length_mla") or b.number("attention.key_length"))
    value = int(b.number("attention.value_length_mla") or b.number("attention.value_length"))
    nope = key - rope_dim
    if f"{prefix}attn_q_a.weight" in b.weights:
        q = b.norm(f"{prefix}attn_q_a_norm", g.matmul(b.need(f"{prefix}attn_q_a.weight"), cur))
        q = g.matmul(b.need(f"{prefix}attn_q_b.weight"), q)
    else:
        q = g.matmul(b.need(f"{prefix}attn_q.weight"), cur)
    q = g.view(q, key, heads, t, op="RESHAPE")
    compressed = g.matmul(b.need(f"{prefix}attn_kv_a_mqa.weight"), cur)
    k_pe = b.rope(g.view(compressed, rope_dim, 1, t), pos)
    latent = b.norm(f"{prefix}attn_kv_a_norm", g.view(compressed, rank, t))
    wo = b.need(f"{prefix}attn_output.weight")
    if layer.n_embd_head_v:
        kv = g.matmul(b.need(f"{prefix}attn_kv_b.weight"), latent)
        v = g.make("CONT", (value, heads, t), g.view(kv, value, heads, t))
        q = b.rope(q, pos)
        k = g.make("CONCAT", (key, heads, t), g.view(kv, nope, heads, t),
                   g.make("REPEAT", (rope_dim, heads, t), k_pe))  # fmt: skip
        return g.matmul(wo, b.attention(il, inp, layer, q, k, v))
    q_pe = b.rope(g.view(q, rope_dim, heads, t), pos)
    q_nope = g.view(g.view(q, nope, heads, t), nope, t, heads, op="PERMUTE")
    absorbed = g.matmul(b.need(f"{prefix}attn_k_b.weight"), q_nope)
    absorbed = g.view(absorbed, rank, heads, t, op="PERMUTE")
    q = g.make("CONCAT", (rank + rope_dim, heads, t), absorbed, q_pe)
    latent = g.view(latent, rank, 1, t, op="RESHAPE")
    k = g.make("CONCAT", (rank + rope_dim, 1, t), latent, k_pe)
    v_mla = b.need(f"{prefix}attn_v_b.weight")
    return g.matmul(wo, b.attention(il, inp, layer, q, k, latent, v_mla=v_mla))
