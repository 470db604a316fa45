"""Gated delta nets and gated attention: Qwen3-Next and Qwen3.5 (src/models/qwen3next.cpp, qwen35.cpp; 0c1e570)."""

from __future__ import annotations

from quantplan.memory.blocks import AttnInput, Blocks
from quantplan.memory.graph import Tensor
from quantplan.memory.recurrent import StateInput, build_rs, save_state, state_cache
from quantplan.model.facts import LayerFacts

ARCHITECTURES = frozenset({"qwen3next", "qwen35", "qwen35moe"})


def delta_net(b: Blocks, il: int, prefix: str, x: Tensor, inp: StateInput) -> Tensor:
    """build_layer_attn_linear, with the fused op that CUDA and the CPU have."""
    g, seqs = b.g, b.p.n_seqs
    g.expand(x)
    t, inner = b.p.n_tokens // seqs, int(b.number("ssm.inner_size"))
    dim_k, n_k = int(b.number("ssm.state_size")), int(b.number("ssm.group_count"))
    n_v = int(b.number("ssm.time_step_rank"))
    dim_v, width, d_conv = inner // n_v, inner + 2 * n_k * dim_k, int(b.number("ssm.conv_kernel"))
    mixed = g.matmul(b.need(f"{prefix}attn_qkv.weight"), x)
    mixed = g.view(mixed, width, t, seqs, op="RESHAPE")
    z = g.matmul(b.need(f"{prefix}attn_gate.weight"), x)
    beta, gate = _beta_and_gate(b, prefix, x, n_k, n_v)
    cache_r, cache_s = state_cache(b, il, "r", (d_conv - 1) * width), state_cache(b, il, "s", dim_v * inner)
    rows = g.view(build_rs(b, inp, cache_r), d_conv - 1, width, seqs, op="RESHAPE")
    conv = g.make("CONCAT", (d_conv - 1 + t, width, seqs), rows, g.view(mixed, t, width, seqs, op="TRANSPOSE"))
    save_state(b, cache_r, g.view(conv, d_conv - 1, width, seqs), (d_conv - 1) * width, seqs)
    state = g.view(build_rs(b, inp, cache_s), dim_v, dim_v, n_v, seqs, op="RESHAPE")
    h = b.unary(g.make("SSM_CONV", (width, t, seqs), conv, b.need(f"{prefix}ssm_conv1d.weight")))
    q, k = (_normed_heads(b, g.view(h, dim_k, n_k, t, seqs), n_v) for _ in range(2))
    v = g.view(h, dim_v, n_v, t, seqs)
    n_rows = t * seqs + dim_v * seqs
    out = g.make("GATED_DELTA_NET", (dim_v * n_v, n_rows), q, k, v, gate, beta, state)
    save_state(b, cache_s, g.view(out, dim_v * inner, seqs), dim_v * inner, seqs)
    y = b.norm(f"{prefix}ssm_norm", g.view(out, dim_v, n_v, t, seqs))
    y = g.like("MUL", y, b.unary(g.view(z, dim_v, n_v, t, seqs, op="RESHAPE")))
    y = g.matmul(b.need(f"{prefix}ssm_out.weight"), g.view(y, inner, t, seqs, op="RESHAPE"))
    return g.view(y, y.ne[0], t * seqs, op="RESHAPE")


def _normed_heads(b: Blocks, x: Tensor, n_v: int) -> Tensor:
    """L2 norm, and where there are fewer key heads than value heads, repeated to match."""
    g = b.g
    dim, n_k, t, seqs = x.ne
    y = b.scale(g.like("RMS_NORM", x))
    if n_k == n_v:
        return y
    y = g.view(y, dim, 1, n_k, t * seqs, op="RESHAPE")
    return g.view(g.make("REPEAT", (dim, n_v // n_k, n_k, t * seqs), y), dim, n_v, t, seqs, op="RESHAPE")


def _beta_and_gate(b: Blocks, prefix: str, x: Tensor, n_k: int, n_v: int) -> tuple[Tensor, Tensor]:
    """The write strength and the decay of every value head."""
    g, seqs = b.g, b.p.n_seqs
    t = b.p.n_tokens // seqs
    if f"{prefix}ssm_ba.weight" in b.weights:
        ba = g.matmul(b.need(f"{prefix}ssm_ba.weight"), x)
        ba = g.view(ba, 2 * n_v // n_k, n_k, t, seqs, op="RESHAPE")
        part = (n_v // n_k, n_k, t, seqs)
        write = b.unary(g.make("CONT", part, g.view(ba, *part)))
        alpha = g.make("CONT", (n_v, t, seqs), g.view(ba, *part))
    else:
        write = b.unary(g.view(g.matmul(b.need(f"{prefix}ssm_beta.weight"), x), 1, n_v, t, seqs, op="RESHAPE"))
        alpha = g.view(g.matmul(b.need(f"{prefix}ssm_alpha.weight"), x), n_v, t, seqs, op="RESHAPE")
    decay = g.like("MUL", b.unary(b.add(alpha, b.need(f"{prefix}ssm_dt.bias"))), b.need(f"{prefix}ssm_a"))
    return g.view(write, 1, n_v, t, seqs, op="RESHAPE"), g.view(decay, 1, n_v, t, seqs, op="RESHAPE")


def gated_attention(
    b: Blocks, il: int, prefix: str, x: Tensor, layer: LayerFacts, inp: AttnInput, pos: Tensor
) -> Tensor:
    """build_layer_attn: the query projection also makes the gate of the output."""
    g, t = b.g, b.p.n_tokens
    g.expand(x)
    head, n_head = layer.n_embd_head_k, layer.n_head
    both = g.view(b.linear(f"{prefix}attn_q", x), 2 * head, n_head, t, 1, op="RESHAPE")
    k = g.view(b.linear(f"{prefix}attn_k", x), head, layer.n_head_kv, t, op="RESHAPE")
    v = g.view(b.linear(f"{prefix}attn_v", x), layer.n_embd_head_v, layer.n_head_kv, t, op="RESHAPE")
    q = b.rope(b.norm(f"{prefix}attn_q_norm", g.view(both, head, n_head, t, 1)), pos)
    k = b.rope(b.norm(f"{prefix}attn_k_norm", k), pos)
    out = b.attention(il, inp, layer, q, k, v)
    gate = b.unary(g.make("CONT", (head * n_head, t), g.view(both, head, n_head, t, 1)))
    return g.matmul(b.need(f"{prefix}attn_output.weight"), g.like("MUL", out, gate))
