"""A host's devices as the speed model sees them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantplan.hardware.facts import GpuFacts, HostFacts
from quantplan.memory.estimate import HOST
from quantplan.planner.calibration import BackendSpeed, Calibration, HostMeasurement, Memory

# hardware.profiles and the drivers name devices as the engine does
_BACKENDS = {"nvidia": "CUDA", "amd": "ROCm", "intel": "Vulkan", "apple": "Metal"}
# Cards whose arithmetic nobody told: float operations a byte of bandwidth, as most cards of the table have
_FLOPS_PER_BYTE, _MATRIX_PER_FLOP = 35.0, 2.0
# Volta, Turing and A100 do half of what they issue in float32 and can do as much in integers, which quantized kernels
# need: https://docs.nvidia.com/cuda/cuda-c-programming-guide (arithmetic instructions by compute capability)
_HALF_FLOAT = frozenset({(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)})
_PCIE3_LANE = 0.985e9  # bytes a second of one PCIe 3.0 lane; each generation doubles it
_QUICK_SPREAD = 0.1  # of a bandwidth measured in a moment, beside the model's own
_NOMINAL_HZ = 3.0e9  # a CPU's clock is not in its facts: the constants are fitted with this one
_WIDE, _NARROW = 64.0, 32.0  # float operations a core and clock: two fused units of 512 or 256 bit


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
    memory: Memory = "GDDR"
    constants: BackendSpeed | None = None
    bandwidth_origin: str = ""
    bandwidth_spread: float = 0.0  # relative half-width of what is assumed instead of measured
    measured: tuple[HostMeasurement, ...] = ()

    @property
    def bandwidth(self) -> float:
        """Bytes a second; only asked where it is known."""
        return float(self.bandwidth_bytes_per_s or 1)

    @property
    def fp32(self) -> float:
        return self.fp32_flops_per_s or _FLOPS_PER_BYTE * self.bandwidth

    @property
    def fp16(self) -> float:
        return self.fp16_flops_per_s or _MATRIX_PER_FLOP * self.fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedHost:
    """The host's devices, the CPU last. `source` says what the constants were fitted from."""

    devices: tuple[DeviceSpeed, ...]
    source: str
    staged_bytes_per_s: float

    def device(self, name: str) -> DeviceSpeed | None:
        return next((device for device in self.devices if device.name == name), None)


def speed_host(host: HostFacts, calibration: Calibration) -> SpeedHost:
    """The devices of a host with the constants of their backends."""
    gpus = [_gpu(gpu, calibration) for gpu in host.gpus]
    return SpeedHost(
        devices=(*gpus, _cpu(host, calibration)), source=calibration.source,
        staged_bytes_per_s=calibration.staged_bytes_per_s,
    )  # fmt: skip


def _gpu(gpu: GpuFacts, calibration: Calibration) -> DeviceSpeed:
    named = gpu.name.rstrip("0123456789")
    backend = "Vulkan" if named == "Vulkan" else _BACKENDS.get(gpu.vendor, "Vulkan")
    card = calibration.cards.get(gpu.spec_name or gpu.product)
    fp32 = float(card.fp32_flops_per_s) if card and card.fp32_flops_per_s else None
    if fp32 is not None and gpu.compute_capability in _HALF_FLOAT:
        fp32 *= 2
    fp16 = float(card.fp16_flops_per_s) if card and card.fp16_flops_per_s else None
    if fp16 is not None and fp32 is not None:
        fp16 = max(fp16, fp32)  # Pascal's half precision is a trickle: the engine computes in 8 and 32 bit there
    memory: Memory = "shared" if gpu.unified else card.memory if card else "GDDR"
    is_measured = gpu.bandwidth_source == "measured"
    rows = tuple(row for row in calibration.measured if row.device == gpu.name)
    # a bench was compared with what the bandwidth known then gives: it goes with that one
    bandwidth = rows[-1].bandwidth_bytes_per_s if rows else gpu.bandwidth_bytes_per_s
    return DeviceSpeed(
        name=gpu.name, kind="gpu", backend=backend, bandwidth_bytes_per_s=bandwidth, bandwidth_is_measured=is_measured,
        fp16_flops_per_s=fp16, fp32_flops_per_s=fp32, link_bytes_per_s=_link(gpu),
        memory=memory, constants=calibration.backends[backend], bandwidth_origin=gpu.bandwidth_source or "",
        measured=rows,
    )  # fmt: skip


def _link(gpu: GpuFacts) -> int | None:
    if gpu.pcie is None:
        return None
    generation = gpu.pcie.max_generation or gpu.pcie.generation
    width = gpu.pcie.max_width or gpu.pcie.width
    return int(_PCIE3_LANE * 2.0 ** (generation - 3) * width) if generation and width else None


def _cpu(host: HostFacts, calibration: Calibration) -> DeviceSpeed:
    simd = host.cpu.simd
    wide = _WIDE if any(name.startswith("avx512") for name in simd) else _NARROW
    flops = max(host.cpu.n_threads, 1) * _NOMINAL_HZ * wide
    known = host.ram.bandwidth_bytes_per_s
    assumed = calibration.unmeasured_ram
    rows = tuple(row for row in calibration.measured if row.device == HOST)
    return DeviceSpeed(
        name=HOST, kind="cpu", backend="CPU",
        bandwidth_bytes_per_s=rows[-1].bandwidth_bytes_per_s if rows else known if known else int(assumed["value"]),
        bandwidth_is_measured=known is not None and host.profile is None,
        fp16_flops_per_s=flops, fp32_flops_per_s=flops, memory="DDR",
        constants=calibration.backends["CPU"],
        bandwidth_origin=_ram_origin(host, calibration),
        bandwidth_spread=(_QUICK_SPREAD if calibration.ram_is_quick else 0.0) if known is not None
        else assumed["high"] / assumed["value"] - 1,
        measured=rows,
    )  # fmt: skip


def _ram_origin(host: HostFacts, calibration: Calibration) -> str:
    if host.ram.bandwidth_bytes_per_s is None:
        return f"assumed ({calibration.unmeasured_ram_is})"
    if host.profile is not None:
        return "given"
    return "measured briefly" if calibration.ram_is_quick else "measured"
