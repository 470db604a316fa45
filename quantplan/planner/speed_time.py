"""Seconds of one device's share: a decoded token of each slot, and a token of a prompt.

decode   Σ classes join(bytes ÷ (bandwidth × read), elements × cost ÷ arithmetic) + the same of the cache + kernels
prefill  Σ classes 2 × elements × (tokens + tile) ÷ (arithmetic × share) + attention + weights read + kernels
"""

from __future__ import annotations

from collections.abc import Mapping

from quantplan.memory.placement import ContextParams
from quantplan.planner.calibration import BackendSpeed
from quantplan.planner.speed_host import DeviceSpeed
from quantplan.planner.speed_work import DeviceWork, PreparedSpeed, cache_work

VECTOR_TOKENS = 8  # ggml/src/ggml-cuda/mmvq.cuh (0c1e570), MMVQ_MAX_BATCH_SIZE: more go matrix by matrix
_PLAIN = frozenset({"F32", "F16", "BF16"})


def decode_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, ctx: ContextParams, *,
    n_depth: float, n_active: int,
) -> float:  # fmt: skip
    """Seconds until every one of `n_active` slots has its next token, as far as this device goes."""
    cells = cache_work(model, work, ctx, n_depth)
    rate = device.bandwidth * has.read[device.memory]
    cost = has.attention if ctx.type_k in _PLAIN and ctx.type_v in _PLAIN else has.attention_quantized
    cache_s = _joined(cells.nbytes * n_active / rate, cells.n_products * n_active * cost / device.fp32, has.join)
    kernels = (work.n_matrices * has.matrix_s + work.n_vectors * has.vector_s + work.n_attention * has.attention_s
               + work.n_recurrent * has.recurrent_s + work.n_mixtures * has.mixture_s)  # fmt: skip
    return _weights_s(model, work, device, has, rate, n_active) + cache_s + kernels + has.token_s


def _weights_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, rate: float, n_active: int
) -> float:
    """One token goes matrix by vector; a few do so one after the other; from some number on it is as a prompt."""
    touched = model.touched(n_active)
    read = vectors = 0.0
    for kind in {*work.dense_bytes, *work.expert_bytes}:
        n_bytes = work.dense_bytes.get(kind, 0) + touched * work.expert_bytes.get(kind, 0)
        # the dense weights of a batch are unpacked for some tokens at once, those of experts for each
        dense = work.dense_elements.get(kind, 0) * (1 + has.batch * (n_active - 1))
        computing = (dense + model.share * n_active * work.expert_elements.get(kind, 0)) * has.cost[kind] / device.fp32
        vectors += _joined(n_bytes / rate, computing, has.join)
        read += n_bytes / rate
    if n_active <= VECTOR_TOKENS:
        return vectors
    return _joined(read, matrix_s(model, work, device, has, n_active), has.join)


def matrix_s(model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, n_tokens: float) -> float:
    """Seconds of arithmetic for so many tokens at once. Experts see their share of them each."""
    touched = model.touched(n_tokens)
    per_expert = n_tokens * model.share / touched
    units = has.matrix[device.memory]
    done = 0.0
    for kind, count in work.dense_elements.items():
        done += count * (n_tokens + has.tile) / _share(has, kind, units)
    for kind, count in work.expert_elements.items():
        done += count * touched * (per_expert + has.expert_tile) / (_share(has, kind, units) * has.prefill_experts)
    return 2 * done / device.fp16


def _share(has: BackendSpeed, kind: str, units: float) -> float:
    return has.prefill[kind] if kind == "f" else has.prefill[kind] * units


def prefill_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, ctx: ContextParams, *,
    n_depth: float, n_tokens: int,
) -> float:  # fmt: skip
    """Seconds of one micro-batch of `n_tokens`, on top of `n_depth` tokens, as far as this device goes."""
    attention_s = cache_prefill_s(model, work, device, has, ctx, n_depth=n_depth, n_tokens=n_tokens)
    n_bytes = sum(work.dense_bytes.values()) + model.touched(n_tokens) * sum(work.expert_bytes.values())
    n_layers = work.n_attention + work.n_recurrent + work.n_mixtures
    kernels = work.n_matrices * has.prefill_matrix_s + n_layers * has.prefill_layer_s + has.token_s
    read_s = n_bytes / (device.bandwidth * has.read[device.memory])
    return _joined(read_s, matrix_s(model, work, device, has, n_tokens), has.join) + attention_s + kernels


def cache_prefill_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, ctx: ContextParams, *,
    n_depth: float, n_tokens: int,
) -> float:  # fmt: skip
    """Seconds of a micro-batch's attention where its cache lies."""
    cells = cache_work(model, work, ctx, n_depth + n_tokens / 2)
    return 2 * cells.n_products * n_tokens / (device.fp16 * has.matrix[device.memory] * has.prefill_attention)


def _joined(a: float, b: float, power: float) -> float:
    """Two things that a device does at once, neither of which hides the other wholly."""
    return float((a**power + b**power) ** (1 / power))


def host_weights_bytes(model: PreparedSpeed, work: DeviceWork, n_tokens: int) -> float:
    """Bytes of the host's weights that a micro-batch needs on a GPU (src/ggml-backend.cpp copies used experts only)."""
    n_dense: Mapping[str, int] = work.dense_bytes
    return sum(n_dense.values()) + model.touched(n_tokens) * sum(work.expert_bytes.values())
