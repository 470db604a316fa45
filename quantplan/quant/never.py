"""Which tensors llama-quantize leaves as they are."""

from __future__ import annotations

from quantplan.model.facts import TensorFacts

# src/llama-quant.cpp (commit 0c1e570), tensor_allows_quantization(): a name with one of these stays as it is
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_GLM5_NEXT = (
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
)


def n_dims(shape: tuple[int, ...]) -> int:
    """ggml_n_dims(): trailing ones do not count."""
    n = len(shape)
    while n > 1 and shape[n - 1] == 1:
        n -= 1
    return n


def is_quantizable(tensor: TensorFacts, *, arch: str) -> bool:
    """tensor_allows_quantization(), but for the options that keep the output or everything."""
    name = tensor.name
    if n_dims(tensor.shape) < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    kept = _KEPT_PARTS + _KEPT_GLM5_NEXT if arch == "glm5-next" else _KEPT_PARTS
    return not any(part in name for part in kept)
