"""Context memory: KV caches and recurrent states, exact (src/llama-kv-cache*.cpp, llama-memory-recurrent.cpp)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantplan.memory.placement import ContextParams, kv_bytes
from quantplan.model.facts import LayerFacts

STATE_BYTES = 4  # recurrent states are f32 (src/llama-model.cpp, create_memory)
# src/llama-arch.cpp, llm_arch_supports_rs_rollback: only these keep states that a draft may take back.
ROLLBACK_ARCHITECTURES = frozenset({"kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "glm5-next"})


def layer_bytes(
    layer: LayerFacts, *, ctx: ContextParams, n_swa: int, widest_v: int, arch: str, sizes: Mapping[str, tuple[int, int]]
) -> int:
    """Bytes of the context memory of one layer.

    Without flash attention V is kept transposed, and layers of different width are padded to the widest one.
    """
    total = 0
    if layer.has_kv and layer.n_head_kv:
        cells = (ctx.n_cells_swa(n_swa) if layer.is_swa and n_swa else ctx.n_cells) * ctx.n_stream
        n_v = layer.n_embd_head_v * layer.n_head_kv
        if n_v and not ctx.flash_attn:
            n_v = widest_v
        total += kv_bytes(ctx.type_k, layer.n_embd_head_k * layer.n_head_kv * cells, sizes)
        total += kv_bytes(ctx.type_v, n_v * cells, sizes)
    if layer.n_embd_idx_k:
        cells = ctx.n_cells * ctx.n_stream
        total += kv_bytes(ctx.type_k, layer.n_embd_idx_k * cells, sizes)
        total += kv_bytes(ctx.type_v, layer.n_embd_idx_v * cells, sizes)
    if layer.n_embd_r or layer.n_embd_s:
        rows = ctx.n_slots * (1 + (ctx.n_draft if arch in ROLLBACK_ARCHITECTURES else 0))
        total += (layer.n_embd_r + layer.n_embd_s) * STATE_BYTES * rows
    return total


def context_bytes(
    layers: Sequence[LayerFacts],
    *,
    ctx: ContextParams,
    n_swa: int,
    arch: str,
    backends: Sequence[int],
    n_backends: int,
    sizes: Mapping[str, tuple[int, int]],
) -> list[int]:
    """Context memory by backend; equal layers are counted once and multiplied."""
    result = [0] * n_backends
    widest = max((layer.n_embd_head_v * layer.n_head_kv for layer in layers), default=0)
    known: dict[LayerFacts, int] = {}
    for layer, backend in zip(layers, backends, strict=False):
        n_bytes = known.get(layer)
        if n_bytes is None:
            n_bytes = known[layer] = layer_bytes(layer, ctx=ctx, n_swa=n_swa, widest_v=widest, arch=arch, sizes=sizes)
        result[backend] += n_bytes
    return result
