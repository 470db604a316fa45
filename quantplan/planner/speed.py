"""Decode and prefill speed of a model on a host: the sum of its devices' times. Pure; figures carry their range.

decode   s/token = Σ devices (bytes ÷ (bandwidth × read) + multiplications × cost ÷ fp32 + kernels × launch)
prefill  s/token = Σ devices (2 × multiplications ÷ (fp16 × share)) + weights on the host over the link
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quantplan.artifact.plan_file import Figure
from quantplan.hardware.facts import GpuFacts, HostFacts
from quantplan.memory.estimate import HOST
from quantplan.memory.placement import ContextParams, Placement
from quantplan.planner.calibration import BackendSpeed, Calibration
from quantplan.planner.speed_work import DeviceWork, PreparedSpeed, cache_bytes_per_cell, prepare_speed, work_of

__all__ = ["DeviceSpeed", "PreparedSpeed", "Speed", "SpeedHost", "predict", "predict_values", "prepare_speed",
           "speed_host", "time_to_first_token"]  # fmt: skip

_BACKENDS = {"nvidia": "CUDA", "amd": "ROCm", "intel": "Vulkan", "apple": "Metal"}
_KV_BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q5_1": 24 / 32, "Q5_0": 22 / 32, "Q4_1": 20 / 32,
             "Q4_0": 18 / 32, "IQ4_NL": 18 / 32}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeed:
    """What a device can do at best, and which backend drives it. None where unknown."""

    name: str
    kind: Literal["gpu", "cpu"]
    backend: str | None
    bandwidth_bytes_per_s: int | None
    bandwidth_is_measured: bool
    fp16_flops_per_s: float | None
    fp32_flops_per_s: float | None = None
    link_bytes_per_s: int | None = None
    constants: BackendSpeed | None = None
    bandwidth_origin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedHost:
    """The host's devices, the CPU last."""

    devices: tuple[DeviceSpeed, ...]
    source: str

    def device(self, name: str) -> DeviceSpeed | None:
        return next((device for device in self.devices if device.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of one request, or of all slots together; None where a device's bandwidth is unknown (`why`)."""

    decode: Figure | None
    prefill: Figure | None
    why: str | None = None


def speed_host(host: HostFacts, calibration: Calibration) -> SpeedHost:
    """The devices of a host with the constants of their backends."""
    gpus = [_gpu(gpu, calibration) for gpu in host.gpus]
    return SpeedHost(devices=(*gpus, _cpu(host, calibration)), source=calibration.source)


def _gpu(gpu: GpuFacts, calibration: Calibration) -> DeviceSpeed:
    backend = _BACKENDS.get(gpu.vendor, "CUDA")
    bandwidth = gpu.bandwidth_bytes_per_s
    lanes = gpu.pcie
    generation = lanes and (lanes.max_generation or lanes.generation)
    width = lanes and (lanes.max_width or lanes.width)
    link = int(0.985e9 * 2 ** (generation - 3) * width) if generation and width else None
    flops = 40.0 * bandwidth if bandwidth else None
    return DeviceSpeed(
        name=gpu.name, kind="gpu", backend=backend, bandwidth_bytes_per_s=bandwidth,
        bandwidth_is_measured=gpu.bandwidth_source == "measured", fp16_flops_per_s=flops and flops * 4,
        fp32_flops_per_s=flops, link_bytes_per_s=link,
        constants=calibration.backends.get(backend, calibration.backends["CUDA"]),
        bandwidth_origin=gpu.bandwidth_source,
    )  # fmt: skip


def _cpu(host: HostFacts, calibration: Calibration) -> DeviceSpeed:
    wide = 32 if {"avx512", "avx512f"} & set(host.cpu.simd) else 16
    flops = host.cpu.n_threads * 3e9 * wide * 2.0
    return DeviceSpeed(
        name=HOST, kind="cpu", backend="CPU", bandwidth_bytes_per_s=host.ram.bandwidth_bytes_per_s,
        bandwidth_is_measured=host.ram.bandwidth_bytes_per_s is not None, fp16_flops_per_s=flops,
        fp32_flops_per_s=flops, constants=calibration.backends["CPU"],
    )  # fmt: skip


def predict(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_depth: int,
    n_active: int = 1,
) -> Speed:  # fmt: skip
    """Decode at `n_depth` tokens of context in each of `n_active` slots, and prefill up to that depth."""
    works = work_of(prepared, placement)
    used = [host.device(name) for name in (*placement.devices, HOST)]
    for work, device in zip(works, used, strict=True):
        if (work.n_layers or work.n_dense or work.n_expert) and (device is None or not device.bandwidth_bytes_per_s):
            return Speed(decode=None, prefill=None, why="the memory bandwidth of a device is not known")
    decode, prefill = predict_values(prepared, ctx, placement, host, n_depth=n_depth, n_active=n_active)
    decode_spread = max(d.constants.spread_decode for d in used if d and d.constants)
    prefill_spread = max(d.constants.spread_prefill for d in used if d and d.constants)
    return Speed(
        decode=_figure(decode, decode_spread, host.source), prefill=_figure(prefill, prefill_spread, host.source)
    )


def _figure(value: float, spread: float, source: str) -> Figure:
    return Figure(value=value, low=value / (1 + spread), high=value * (1 + spread), origin=f"calculated: {source}")


def predict_values(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_depth: int,
    n_active: int = 1,
) -> tuple[float, float]:  # fmt: skip
    """(decode of all slots, prefill) in tokens a second; 0 where a device's bandwidth is unknown."""
    works = work_of(prepared, placement)
    used = [host.device(name) for name in (*placement.devices, HOST)]
    decode_s = prefill_s = 0.0
    for work, device in zip(works, used, strict=True):
        if not (work.n_layers or work.n_dense or work.n_expert):
            continue
        if device is None or device.constants is None or not device.bandwidth_bytes_per_s:
            return 0.0, 0.0
        decode_s += _decode_s(prepared, work, device, device.constants, ctx, n_depth, n_active)
        prefill_s += _prefill_s(prepared, work, device, device.constants, ctx, n_depth, used[0])
    return n_active / decode_s, 1 / prefill_s


def _decode_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, ctx: ContextParams, n_depth: int,
    n_active: int,
) -> float:  # fmt: skip
    rate = (device.bandwidth_bytes_per_s or 1) * has.read
    flops = device.fp32_flops_per_s or 40.0 * rate
    share = model.n_expert_used / model.n_expert
    touched = 1 - (1 - share) ** n_active  # of the experts, when the slots choose independently
    n_bytes = sum(work.dense_bytes.values()) + touched * sum(work.expert_bytes.values())
    n_bytes += n_active * _cache_bytes(model, work, ctx, n_depth)
    spent = _operations(work.dense_elements, has.cost) + share * _operations(work.expert_elements, has.cost)
    kernels = (work.n_dense + work.n_expert) * has.matrix_s + work.n_layers * has.layer_s
    return n_bytes / rate + n_active * spent / flops + kernels + has.token_s


def _prefill_s(
    model: PreparedSpeed, work: DeviceWork, device: DeviceSpeed, has: BackendSpeed, ctx: ContextParams, n_depth: int,
    first: DeviceSpeed | None,
) -> float:  # fmt: skip
    flops = device.fp16_flops_per_s or 160.0 * (device.bandwidth_bytes_per_s or 1)
    n_tokens = ctx.n_ubatch_effective
    share = model.n_expert_used / model.n_expert
    arithmetic = sum(2 * n / _of(has.prefill, kind) for kind, n in work.dense_elements.items())
    arithmetic += share * sum(2 * n / _of(has.prefill, kind) for kind, n in work.expert_elements.items())
    attention = 2 * _cache_elements(model, work, n_depth) / _of(has.prefill, "F16")
    if device.kind == "cpu" and first is not None and first.kind == "gpu" and first.link_bytes_per_s:
        moved = sum(work.dense_bytes.values()) + sum(work.expert_bytes.values())
        return moved / (first.link_bytes_per_s * 0.2) / n_tokens + has.token_s / n_tokens
    n_bytes = sum(work.dense_bytes.values()) + sum(work.expert_bytes.values())
    kernels = (work.n_dense + work.n_expert) * has.matrix_s + work.n_layers * has.layer_s
    rate = (device.bandwidth_bytes_per_s or 1) * has.read
    return (arithmetic + attention) / flops + (n_bytes / rate + kernels + has.token_s) / n_tokens


def _operations(n_elements: Mapping[str, int], cost: Mapping[str, float]) -> float:
    return sum(n * _of(cost, kind) for kind, n in n_elements.items())


def _of(table: Mapping[str, float], kind: str) -> float:
    found = table.get(kind)
    return table["*"] if found is None else found


def _cells(layer_is_swa: bool, n_swa: int, n_depth: int) -> int:
    return min(n_depth, n_swa) if layer_is_swa and n_swa else n_depth


def _cache_bytes(model: PreparedSpeed, work: DeviceWork, ctx: ContextParams, n_depth: int) -> float:
    k_bytes, v_bytes = _KV_BYTES[ctx.type_k], _KV_BYTES[ctx.type_v]
    total = 0.0
    for layer, count in work.caches.items():
        cells = _cells(layer.is_swa, model.facts.n_swa, n_depth)
        per_cell = cache_bytes_per_cell(layer, k_bytes=k_bytes, v_bytes=v_bytes)
        total += count * (cells * per_cell + 8 * (layer.n_embd_r + layer.n_embd_s))
    return total


def _cache_elements(model: PreparedSpeed, work: DeviceWork, n_depth: int) -> float:
    """Multiplications of attention for a token at this depth."""
    total = 0.0
    for layer, count in work.caches.items():
        if layer.has_kv:
            cells = _cells(layer.is_swa, model.facts.n_swa, n_depth)
            width = layer.n_embd_head_k + (layer.n_embd_head_v or layer.n_embd_head_k)
            total += count * cells * layer.n_head * width
    return total


def time_to_first_token(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_prompt: int
) -> Figure | None:
    """Seconds until the first token of a prompt, at the mean of the depths it passes."""
    speed = predict(prepared, ctx, placement, host, n_depth=n_prompt // 2)
    if speed.prefill is None or speed.decode is None:
        return None
    one = 1 / speed.decode.value
    return Figure(
        value=n_prompt / speed.prefill.value + one, low=n_prompt / speed.prefill.high + one,
        high=n_prompt / speed.prefill.low + one, origin=speed.prefill.origin,
    )  # fmt: skip
