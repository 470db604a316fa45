"""Decode and prefill speed of a model on a host: the sum of its devices' times. Pure; figures carry their range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Figure
from quantplan.memory.estimate import HOST
from quantplan.memory.placement import ContextParams, Placement
from quantplan.planner.speed_correction import Correction, correction
from quantplan.planner.speed_host import DeviceSpeed, SpeedHost, speed_host
from quantplan.planner.speed_time import cache_prefill_s, decode_s, host_weights_bytes, matrix_s, prefill_s
from quantplan.planner.speed_work import DeviceWork, PreparedSpeed, prepare_speed, work_of

__all__ = ["DeviceSpeed", "PreparedSpeed", "Speed", "SpeedHost", "predict", "predict_values", "prepare_speed",
           "speed_host", "time_to_first_token", "time_to_load"]  # fmt: skip

# ggml/src/ggml-cuda/ggml-cuda.cu (0c1e570), ggml_backend_cuda_device_offload_op: below so many tokens the host's
# weights are multiplied on the host
OFFLOAD_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of all active slots together; None, with the reason, where a device's bandwidth is unknown."""

    decode: Figure | None
    prefill: Figure | None
    why: str | None = None


def predict(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_depth: int,
    n_active: int = 1,
) -> Speed:  # fmt: skip
    """Decoding at `n_depth` tokens of context in each of `n_active` slots, and reading a micro-batch at that depth."""
    pairs = _pairs(prepared, ctx, placement, host)
    unknown = next((device for _, device in pairs if not _known(device)), None)
    if unknown is not None:
        return Speed(decode=None, prefill=None, why=f"the memory bandwidth of {unknown.name} is not known")
    decode = _parts_of_decode(prepared, ctx, pairs, n_depth, n_active)
    prefill = _parts_of_prefill(prepared, ctx, pairs, host, n_depth)
    n_tokens = ctx.n_ubatch_effective
    return Speed(decode=_figure(n_active, decode, host), prefill=_figure(n_tokens, prefill, host))


def predict_values(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_depth: int,
    n_active: int = 1,
) -> tuple[float, float]:  # fmt: skip
    """(decode of all slots, prefill) in tokens a second, without their ranges; 0 where a bandwidth is unknown."""
    pairs = _pairs(prepared, ctx, placement, host)
    if not all(_known(device) for _, device in pairs):
        return 0.0, 0.0
    decode = sum(part.seconds for part in _parts_of_decode(prepared, ctx, pairs, n_depth, n_active))
    prefill = sum(part.seconds for part in _parts_of_prefill(prepared, ctx, pairs, host, n_depth))
    return n_active / decode, ctx.n_ubatch_effective / prefill


def time_to_first_token(
    prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost, *, n_prompt: int
) -> Figure | None:
    """Seconds from a prompt that nothing is cached of to its first token, or None where the speed is unknown."""
    speed = predict(prepared, ctx, placement, host, n_depth=n_prompt // 2)
    if speed.prefill is None or speed.decode is None:
        return None
    return Figure(
        value=n_prompt / speed.prefill.value + 1 / speed.decode.value,
        low=n_prompt / speed.prefill.high + 1 / speed.decode.high,
        high=n_prompt / speed.prefill.low + 1 / speed.decode.low, origin=speed.prefill.origin,
    )  # fmt: skip


def time_to_load(file_bytes: int, *, read_bytes_per_s: int | None) -> Figure | None:
    """Seconds to read a file from a cold disk at its measured rate; None where that was never measured."""
    if not read_bytes_per_s:
        return None
    value = file_bytes / read_bytes_per_s
    return Figure(
        value=value, low=value * 0.8, high=value * 1.5, origin="calculated: bytes over the disk's measured rate"
    )


# ---- the parts


@dataclass(frozen=True, slots=True)
class _Part:
    """Seconds of one device, with what corrects them and how far they may be off."""

    seconds: float
    spread: float
    device: DeviceSpeed
    correction: Correction | None


_Pairs = Sequence[tuple[DeviceWork, DeviceSpeed]]


def _pairs(prepared: PreparedSpeed, ctx: ContextParams, placement: Placement, host: SpeedHost) -> _Pairs:
    """Each device that has something to do, with its work; the host last."""
    works = work_of(prepared, placement, kv_offload=ctx.kv_offload)
    found = []
    for work, name in zip(works, (*placement.devices, HOST), strict=True):
        if not work.is_idle:
            device = host.device(name)
            found.append((work, device if device is not None else _unknown(name)))
    return found


def _unknown(name: str) -> DeviceSpeed:
    return DeviceSpeed(name=name, kind="gpu", backend=None, bandwidth_bytes_per_s=None, bandwidth_is_measured=False,
                       fp16_flops_per_s=None)  # fmt: skip


def _known(device: DeviceSpeed) -> bool:
    return device.constants is not None and bool(device.bandwidth_bytes_per_s)


def _parts_of_decode(
    prepared: PreparedSpeed, ctx: ContextParams, pairs: _Pairs, n_depth: int, n_active: int
) -> list[_Part]:
    parts = []
    crossing = pairs[0][1].constants.crossing_s if pairs[0][1].constants else 0.0
    for work, device in pairs:
        assert device.constants is not None
        fixed = correction(prepared, device, "decode")
        seconds = decode_s(prepared, work, device, device.constants, ctx, n_depth=n_depth, n_active=n_active)
        parts.append(
            _part("decode", seconds * (fixed.factor if fixed else 1.0) + work.n_runs * crossing, device, fixed)
        )
    return parts


def _parts_of_prefill(
    prepared: PreparedSpeed, ctx: ContextParams, pairs: _Pairs, host: SpeedHost, n_depth: int
) -> list[_Part]:
    """A GPU computes the host's matrices too, once the batch is large enough: their bytes are sent over first."""
    parts = []
    first, n_tokens = pairs[0][1], ctx.n_ubatch_effective
    for work, device in pairs:
        assert device.constants is not None
        fixed = correction(prepared, device, "prefill")
        if device.kind == "cpu" and first.kind == "gpu" and first.constants and n_tokens >= OFFLOAD_TOKENS:
            link = min(host.staged_bytes_per_s, float(first.link_bytes_per_s or host.staged_bytes_per_s))
            seconds = host_weights_bytes(prepared, work, n_tokens) / link
            seconds += matrix_s(prepared, work, first, first.constants, n_tokens)
            seconds += cache_prefill_s(
                prepared, work, device, device.constants, ctx, n_depth=n_depth, n_tokens=n_tokens
            )
            fixed = None
        else:
            seconds = prefill_s(prepared, work, device, device.constants, ctx, n_depth=n_depth, n_tokens=n_tokens)
        parts.append(_part("prefill", seconds * (fixed.factor if fixed else 1.0), device, fixed))
    return parts


def _part(kind: str, seconds: float, device: DeviceSpeed, fixed: Correction | None) -> _Part:
    has = device.constants
    assert has is not None
    usual = (has.spread_decode if kind == "decode" else has.spread_prefill)[device.memory]
    spread = fixed.spread if fixed else usual + (device.bandwidth_spread if kind == "decode" else 0.0)
    return _Part(seconds, spread, device, fixed)


def _figure(n_tokens: int, parts: Sequence[_Part], host: SpeedHost) -> Figure:
    seconds = sum(part.seconds for part in parts)
    spread = sum(part.seconds * part.spread for part in parts) / seconds
    value = n_tokens / seconds
    return Figure(value=value, low=value / (1 + spread), high=value * (1 + spread), origin=_origin(parts, host))


def _origin(parts: Sequence[_Part], host: SpeedHost) -> str:
    """What a figure rests on: measured on this host, or fitted elsewhere; and whose bandwidth."""
    if all(part.correction for part in parts):
        return "; ".join(dict.fromkeys(part.correction.origin for part in parts if part.correction))
    told = [
        f"{part.device.name} bandwidth {part.device.bandwidth_origin}" for part in parts if part.device.bandwidth_origin
    ]
    return f"calculated: {host.source}; {', '.join(dict.fromkeys(told))}"
