"""Recurrent layers: Mamba, Mamba-2 and short convolutions (src/models/mamba-base.cpp, lfm2.cpp; llama.cpp 0c1e570)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantplan.memory.blocks import Blocks
from quantplan.memory.graph import F32, Tensor


@dataclass(slots=True)
class StateInput:
    """Which slots the batch's sequences use."""

    main: Tensor
    extra: Tensor


def state_input(b: Blocks) -> StateInput:
    copy = b.g.input(b.p.n_rs, kind="i32")
    return StateInput(
        main=b.g.view(copy, b.p.n_seqs),
        extra=b.g.view(copy, b.p.n_rs - b.p.n_seqs),
    )


def state_cache(b: Blocks, il: int, which: str, n_embd: int) -> Tensor:
    """The cache of one layer: "r" for the convolution, "s" for the recurrence."""
    name = f"state_{which}_l{il}"
    return b.held_cache(name, (n_embd, b.p.n_rs), n_embd * b.p.n_rs * F32, b.cache_backends[il])


def build_rs(
    b: Blocks, inp: StateInput, cache: Tensor, rows: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """build_rs: clears, gathers and copies the states of this batch's sequences."""
    g, size = b.g, cache.ne[0]
    states = g.view(cache, size, cache.ne[1], op="RESHAPE")
    zero = g.view(states, size)
    g.expand(g.into("SCALE", zero, zero))
    out = rows(states, inp.main) if rows is not None else g.make("GET_ROWS", (size, b.p.n_seqs), states, inp.main)
    g.expand(out)
    spare = b.p.n_rs - b.p.n_seqs
    extra = g.make("GET_ROWS", (size, spare), states, inp.extra)
    target = g.view(cache, size, spare)
    g.expand(g.into("CPY", target, extra, target))
    return out


def save_state(b: Blocks, cache: Tensor, source: Tensor, *ne: int) -> None:
    """Copies the batch's new state into the cache."""
    target = b.g.view(cache, *ne)
    b.g.expand(b.g.into("CPY", target, source, target))


def shortconv(b: Blocks, il: int, prefix: str, x: Tensor, inp: StateInput) -> Tensor:
    """LFM2's gated short convolution."""
    g, seqs = b.g, b.p.n_seqs
    n_embd, t = x.ne[0], b.p.n_tokens // seqs
    d_conv = int(b.number("shortconv.l_cache")) - 1
    bcx = g.matmul(b.need(f"{prefix}shortconv.in_proj.weight"), g.view(x, n_embd, t, seqs, op="RESHAPE"))
    chunk = (bcx.ne[0] // 3, t, seqs)
    gate_b, gate_c, value = (g.view(bcx, *chunk) for _ in range(3))
    bx = g.view(g.make("MUL", chunk, gate_b, value), t, n_embd, seqs, op="TRANSPOSE")
    cache = state_cache(b, il, "r", n_embd * d_conv)
    conv = g.view(build_rs(b, inp, cache), d_conv, n_embd, seqs, op="RESHAPE")
    bx = g.make("CONCAT", (d_conv + t, n_embd, seqs), conv, bx)
    save_state(b, cache, g.view(bx, d_conv, n_embd, seqs), d_conv * n_embd, seqs)
    out = g.make("SSM_CONV", (n_embd, t, seqs), bx, b.need(f"{prefix}shortconv.conv.weight"))
    y = g.matmul(b.need(f"{prefix}shortconv.out_proj.weight"), g.make("MUL", chunk, gate_c, out))
    return g.view(y, y.ne[0], t * seqs, op="RESHAPE")


def mamba(b: Blocks, il: int, prefix: str, x: Tensor, inp: StateInput) -> Tensor:
    """build_mamba_layer."""
    g, seqs = b.g, b.p.n_seqs
    t, inner, state = b.p.n_tokens // seqs, int(b.number("ssm.inner_size")), int(b.number("ssm.state_size"))
    rank = int(b.number("ssm.time_step_rank"))
    r_first = _lazy_state(b, il, inp, (int(b.number("ssm.conv_kernel")) - 1) * inner)
    xz = g.matmul(b.need(f"{prefix}ssm_in.weight"), g.view(x, x.ne[0], t, seqs, op="RESHAPE"))
    conv_in, z = g.view(xz, inner, t, seqs), g.view(xz, inner, t, seqs)
    h = _conv_with(b, il, prefix, conv_in, r_first, inner)
    x_db = g.matmul(b.need(f"{prefix}ssm_x.weight"), h)
    dt: Tensor = g.view(x_db, rank, t, seqs)
    bb, cc = g.view(x_db, state, 1, t, seqs), g.view(x_db, state, 1, t, seqs)
    if b.meta.get(f"{b.arch}.ssm.dt_b_c_rms") or f"{prefix}ssm_dt_norm.weight" in b.weights:
        dt, bb, cc = (b.norm(f"{prefix}ssm_{n}_norm", y) for n, y in (("dt", dt), ("b", bb), ("c", cc)))
    else:
        dt = g.make("CONT", dt.ne, dt)
    dt = b.linear(f"{prefix}ssm_dt", dt)
    heads = g.view(h, 1, inner, t, seqs, op="RESHAPE")
    y_ssm = _scan(b, il, prefix, inp, heads, dt, bb, cc, (state, 1, inner))
    y = g.view(y_ssm, inner, t, seqs)
    y = g.make("ADD", y.ne, y, g.like("MUL", h, b.need(f"{prefix}ssm_d")))
    y = g.make("GLU", (inner, t, seqs), g.make("CONT", (inner, t, seqs), z), y)
    out = g.matmul(b.need(f"{prefix}ssm_out.weight"), y)
    return g.view(out, out.ne[0], t * seqs, op="RESHAPE")


def mamba2(b: Blocks, il: int, prefix: str, x: Tensor, inp: StateInput) -> Tensor:
    """build_mamba2_layer."""
    g, seqs = b.g, b.p.n_seqs
    t, inner, state = b.p.n_tokens // seqs, int(b.number("ssm.inner_size")), int(b.number("ssm.state_size"))
    n_head, n_group = int(b.number("ssm.time_step_rank")), int(b.number("ssm.group_count"))
    head_dim, width = inner // n_head, inner + 2 * n_group * state
    r_first = _lazy_state(b, il, inp, (int(b.number("ssm.conv_kernel")) - 1) * width)
    mixed = g.matmul(b.need(f"{prefix}ssm_in.weight"), x)
    mixed = g.view(mixed, mixed.ne[0], t, seqs, op="RESHAPE")
    z, dt = g.view(mixed, head_dim, n_head, t, seqs), g.view(mixed, n_head, t, seqs)
    h = _conv_with(b, il, prefix, g.view(mixed, width, t, seqs), r_first, width)
    xs = g.view(h, head_dim, n_head, t, seqs)
    bb, cc = g.view(h, state, n_group, t, seqs), g.view(h, state, n_group, t, seqs)
    dt = b.add(g.make("CONT", dt.ne, dt), b.need(f"{prefix}ssm_dt.bias"))
    y_ssm = _scan(b, il, prefix, inp, xs, dt, bb, cc, (state, head_dim, n_head))
    y = g.view(y_ssm, head_dim, n_head, t, seqs)
    y = g.make("ADD", y.ne, y, g.make("MUL", xs.ne, xs, b.need(f"{prefix}ssm_d")))
    y = g.make("GLU", y.ne, g.make("CONT", z.ne, z), y)
    if f"{prefix}ssm_norm.weight" in b.weights:
        y = b.norm(f"{prefix}ssm_norm", g.view(y, inner // n_group, n_group, t, seqs, op="RESHAPE"))
    return g.matmul(b.need(f"{prefix}ssm_out.weight"), g.view(y, inner, t * seqs, op="RESHAPE"))


def _lazy_state(b: Blocks, il: int, inp: StateInput, size: int) -> tuple[Tensor, Tensor]:
    """The convolution's state, gathered before anything else of the layer."""
    cache = state_cache(b, il, "r", size)
    return cache, build_rs(b, inp, cache)


def _conv_with(b: Blocks, il: int, prefix: str, x: Tensor, state: tuple[Tensor, Tensor], width: int) -> Tensor:
    g, seqs = b.g, b.p.n_seqs
    t, d_conv = b.p.n_tokens // seqs, int(b.number("ssm.conv_kernel"))
    cache, rows = state
    conv = g.view(rows, d_conv - 1, width, seqs, op="RESHAPE")
    conv_x = g.make("CONCAT", (d_conv - 1 + t, width, seqs), conv, g.view(x, t, width, seqs, op="TRANSPOSE"))
    save_state(b, cache, g.view(conv_x, d_conv - 1, width, seqs), (d_conv - 1) * width, seqs)
    y = g.make("SSM_CONV", (width, t, seqs), conv_x, b.need(f"{prefix}ssm_conv1d.weight"))
    bias = b.w(f"{prefix}ssm_conv1d.bias")
    return b.unary(y if bias is None else b.add(y, bias))


def _scan(
    b: Blocks, il: int, prefix: str, inp: StateInput, xs: Tensor, dt: Tensor, bb: Tensor, cc: Tensor,
    shape: tuple[int, int, int],
) -> Tensor:  # fmt: skip
    """The selective scan: its outputs and the new states in one tensor, and the states' way back to the cache."""
    g, seqs = b.g, b.p.n_seqs
    state, head_dim, n_head = shape
    n_state = state * head_dim * n_head
    a = b.need(f"{prefix}ssm_a")
    cache = state_cache(b, il, "s", n_state)
    n_out = head_dim * n_head * b.p.n_tokens

    def rows(states: Tensor, ids: Tensor) -> Tensor:
        ssm = g.view(states, state, head_dim, n_head, b.p.n_rs, op="RESHAPE")
        return g.make("SSM_SCAN", (n_out + n_state * seqs,), ssm, xs, dt, a, bb, cc, ids)

    y = build_rs(b, inp, cache, rows)
    save_state(b, cache, g.view(y, n_state, seqs), n_state, seqs)
    return y
