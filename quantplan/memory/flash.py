"""Where flash attention works on CUDA: head sizes of ggml-cuda/fattn.cu, ggml_cuda_get_best_fattn_kernel (0c1e570)."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.model.facts import LayerFacts

_EQUAL = frozenset({40, 64, 72, 80, 96, 112, 128, 256})  # K and V of the same size
# (K, V) -> the query heads a KV head must divide by
_PAIRS = {(192, 128): 8, (320, 256): 32, (512, 512): 1, (576, 512): 1}
_LATENT_ROPE = 64  # MLA: V is the latent, K the latent and 64 rotated elements


def flash_attention_works(layers: Sequence[LayerFacts]) -> bool:
    """Whether `auto` leaves flash attention on: every attention layer has a kernel."""
    return all(_has_kernel(layer) for layer in layers if layer.has_kv and layer.n_head_kv)


def _has_kernel(layer: LayerFacts) -> bool:
    k = layer.n_embd_head_k
    v = layer.n_embd_head_v or k - _LATENT_ROPE
    if k == v and k in _EQUAL:
        return True
    ratio = layer.n_head // layer.n_head_kv
    multiple = _PAIRS.get((k, v))
    return multiple is not None and ratio >= multiple and ratio % multiple == 0


def is_latent(layer: LayerFacts) -> bool:
    """Whether the layer caches one latent for K and V (MLA)."""
    return layer.has_kv and layer.n_embd_head_k > 0 and layer.n_embd_head_v == 0
