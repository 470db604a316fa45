"""NVIDIA devices as the engine will see them, read through NVML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantplan.hardware import nvml as api
from quantplan.hardware.facts import GpuFacts, GpuProcess, PcieFacts, RamFacts
from quantplan.hardware.nvml import Nvml, NvmlRefused
from quantplan.units import MIB

# nvml.h
_MEMORY_V2 = 0x02000028  # nvmlMemory_v2: version 2, 40 bytes
_CLOCK_MEM = 2
_TEMPERATURE_GPU = 0
_THRESHOLD_SLOWDOWN = 1
_NVLINK_MAX_LINKS = 18  # what one card has had up to Blackwell
_HBM_BITS = 1024  # one HBM stack is 1,024 bits wide; no GDDR card reaches that

# nvml.h, nvmlClocksEventReason*: what holds the clocks down. Bit 0 (idle) is no reason for concern and left out.
THROTTLE_REASONS = {
    0x002: "application clocks set",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}
HARMFUL_THROTTLE = frozenset(
    {"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaFacts:
    """All NVIDIA devices of a host, in the order NVML counts them, and the driver's versions."""

    gpus: tuple[GpuFacts, ...] = ()
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    refused: str | None = None


# (product, total bytes) -> (name in the table, bandwidth) of a known card
Bandwidth = Callable[[str, int], tuple[str, int] | None]


def read_nvidia(nvml: Nvml, ram: RamFacts, *, env: Mapping[str, str], known: Bandwidth | None = None) -> NvidiaFacts:
    """Every device NVML shows; `refused` carries its own words where there is no answer at all."""
    try:
        count = int(nvml.query("nvmlDeviceGetCount"))
    except NvmlRefused as error:
        return NvidiaFacts(refused=error.text, warnings=())
    gpus: list[GpuFacts] = []
    warnings: list[str] = []
    for index in range(count):
        try:
            handle = nvml.query("nvmlDeviceGetHandleByIndex", index)
            gpus += _device(nvml, handle, ram, known=known, warnings=warnings)
        except NvmlRefused as error:
            warnings.append(f"NVIDIA device {index} does not answer ({error.text}); it is left out")
    visible, told = select_visible(tuple(gpus), env)
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion")
    return NvidiaFacts(
        gpus=visible,
        driver=_ask(nvml, "nvmlSystemGetDriverVersion"),
        driver_cuda=(cuda // 1000, cuda % 1000 // 10) if isinstance(cuda, int) else None,
        warnings=(*warnings, *told),
    )


def _ask(nvml: Nvml, function: str, *args: object) -> Any:
    """An answer that a device may well not have: None then."""
    try:
        return nvml.query(function, *args)
    except NvmlRefused:
        return None


def _device(
    nvml: Nvml, handle: object, ram: RamFacts, *, known: Bandwidth | None, warnings: list[str]
) -> list[GpuFacts]:
    whole = _whole(nvml, handle, ram, known)
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    if not (isinstance(mode, list) and mode and mode[0] == 1):
        return [whole]
    slices = []
    for index in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        try:
            part = nvml.query("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        except NvmlRefused:
            continue  # NOT_FOUND: this slot has no instance
        slices.append(_mig(nvml, part, whole))
    if not slices:
        warnings.append(f"{whole.product} is in MIG mode and has no instance: the engine sees no device there")
    return slices


def _whole(nvml: Nvml, handle: object, ram: RamFacts, known: Bandwidth | None) -> GpuFacts:
    product = str(nvml.query("nvmlDeviceGetName", handle))
    memory, unified = _memory(nvml, handle, ram)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    pci = _ask(nvml, "nvmlDeviceGetPciInfo", handle) or {}
    width = _ask(nvml, "nvmlDeviceGetMemoryBusWidth", handle)
    clock_mhz = _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, _CLOCK_MEM)
    gpu = GpuFacts(
        name="",
        product=product,
        vendor="nvidia",
        total_bytes=memory["total"],
        free_bytes=memory["free"],
        reserved_bytes=memory.get("reserved"),
        unified=unified,
        uuid=_ask(nvml, "nvmlDeviceGetUUID", handle),
        compute_capability=(capability[0], capability[1]) if capability else None,
        bus_id=pci.get("busId"),
        numa_node=_numa_node(nvml, handle),
        bus_width_bits=width,
        memory_clock_hz=clock_mhz * 1_000_000 if clock_mhz else None,
        pcie=_pcie(nvml, handle),
        nvlink_active=_nvlinks(nvml, handle),
        power_limit_w=_watts(_ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)),
        power_default_w=_watts(_ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        power_draw_w=_watts(_ask(nvml, "nvmlDeviceGetPowerUsage", handle)),
        temperature_c=_ask(nvml, "nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU),
        temperature_slowdown_c=_ask(nvml, "nvmlDeviceGetTemperatureThreshold", handle, _THRESHOLD_SLOWDOWN),
        throttle_reasons=throttle_reasons(_ask_throttle(nvml, handle)),
        processes=_processes(nvml, handle),
    )
    return _with_bandwidth(gpu, known)


def _memory(nvml: Nvml, handle: object, ram: RamFacts) -> tuple[dict[str, int], bool]:
    """total, free and (from version 2 of the structure on) reserved; the host's RAM where the device shares it."""
    try:
        return nvml.query("nvmlDeviceGetMemoryInfo", handle, _MEMORY_V2), False
    except NvmlRefused as error:
        second = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
        if second is not None:
            return second, False
        if error.code != api.NOT_SUPPORTED:
            raise
    return {"total": ram.total_bytes, "free": ram.available_bytes}, True


def _with_bandwidth(gpu: GpuFacts, known: Bandwidth | None) -> GpuFacts:
    """Clocks and bus width are this very card's own; the datasheet's figure comes first for HBM, whose clock is
    reported above what is sold (H200: 4,917 against 4,800 GB/s), and where the driver tells no clock."""
    table = known(gpu.product, gpu.total_bytes) if known else None
    spec_name = table[0] if table else None
    clocks = None
    if gpu.bus_width_bits and gpu.memory_clock_hz:
        clocks = 2 * gpu.memory_clock_hz * gpu.bus_width_bits // 8
    stacked = gpu.bus_width_bits is not None and gpu.bus_width_bits >= _HBM_BITS
    if table and (clocks is None or gpu.unified or (stacked and abs(clocks - table[1]) * 20 <= table[1])):
        return replace(gpu, bandwidth_bytes_per_s=table[1], bandwidth_source="table", spec_name=spec_name)
    if clocks is not None:
        return replace(gpu, bandwidth_bytes_per_s=clocks, bandwidth_source="clocks", spec_name=spec_name)
    return gpu


def _pcie(nvml: Nvml, handle: object) -> PcieFacts | None:
    found = PcieFacts(
        generation=_ask(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
        width=_ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
        max_generation=_ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        max_width=_ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        card_generation=_ask(nvml, "nvmlDeviceGetGpuMaxPcieLinkGeneration", handle),
    )
    return None if found == PcieFacts() else found


def _nvlinks(nvml: Nvml, handle: object) -> int | None:
    """Links that are up; None where the device has no NVLink."""
    states = []
    for link in range(_NVLINK_MAX_LINKS):
        state = _ask(nvml, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        states.append(state == 1)
    return sum(states) if states else None


def _numa_node(nvml: Nvml, handle: object) -> int | None:
    node = _ask(nvml, "nvmlDeviceGetNumaNodeId", handle)
    return node if isinstance(node, int) and 0 <= node < 4096 else None


def _watts(milliwatts: int | None) -> float | None:
    return milliwatts / 1000 if milliwatts else None


def _ask_throttle(nvml: Nvml, handle: object) -> int:
    bits = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if bits is None:  # the name before driver 535
        bits = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return int(bits or 0)


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """The names of what holds a card's clocks down, without `idle`."""
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


def _processes(nvml: Nvml, handle: object) -> tuple[GpuProcess, ...]:
    found: dict[int, GpuProcess] = {}
    for kind in ("Compute", "Graphics"):
        for told in _ask(nvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) or ():
            pid, used = int(told["pid"]), told.get("usedGpuMemory")
            name = _ask(nvml, "nvmlSystemGetProcessName", pid)
            found[pid] = GpuProcess(pid=pid, used_bytes=used, name=name.rsplit("/", 1)[-1] if name else None)
    return tuple(found.values())


def _mig(nvml: Nvml, part: object, whole: GpuFacts) -> GpuFacts:
    """An instance: its own memory, and its parent's bandwidth by eighths, as memory slices are cut."""
    memory = nvml.query("nvmlDeviceGetMemoryInfo", part)
    product = str(_ask(nvml, "nvmlDeviceGetName", part) or whole.product)
    told = _ask(nvml, "nvmlDeviceGetAttributes", part) or {}
    size = told.get("memorySizeMB", 0) * MIB or memory["total"]
    eighths = min(max(round(8 * size / whole.total_bytes), 1), 8)
    bandwidth = whole.bandwidth_bytes_per_s
    return replace(
        whole,
        product=product,
        total_bytes=memory["total"],
        free_bytes=memory["free"],
        reserved_bytes=memory.get("reserved"),
        uuid=_ask(nvml, "nvmlDeviceGetUUID", part),
        bandwidth_bytes_per_s=bandwidth * eighths // 8 if bandwidth else None,
        mig_profile=product.rsplit(" MIG ", maxsplit=1)[-1] if " MIG " in product else None,
        mig_parent=whole.uuid or whole.product,
        processes=(),
    )


def select_visible(gpus: tuple[GpuFacts, ...], env: Mapping[str, str]) -> tuple[tuple[GpuFacts, ...], list[str]]:
    """The devices CUDA will show the engine, named CUDA0, CUDA1 … in its order, and what was assumed of that order."""
    warnings = []
    order = env.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    asked = env.get("CUDA_VISIBLE_DEVICES")
    if len({gpu.product for gpu in gpus if gpu.mig_profile is None}) > 1 and order != "PCI_BUS_ID":
        warnings.append(
            "CUDA counts unlike cards fastest first; assumed the order of the PCI bus (CUDA_DEVICE_ORDER=PCI_BUS_ID)"
        )
    chosen = gpus if asked is None else _picked(gpus, asked)
    if any(gpu.mig_profile for gpu in chosen) and len(chosen) > 1:
        first = next(gpu for gpu in chosen if gpu.mig_profile)
        warnings.append(
            f"CUDA gives a process one MIG instance; assumed the first of {len(chosen)} ({first.mig_profile})"
        )
        chosen = (first,)
    named = tuple(replace(gpu, name=f"CUDA{index}") for index, gpu in enumerate(chosen))
    return named, warnings


def _picked(gpus: tuple[GpuFacts, ...], asked: str) -> tuple[GpuFacts, ...]:
    """What CUDA_VISIBLE_DEVICES names: numbers or UUID prefixes, up to the first that names nothing."""
    found: list[GpuFacts] = []
    for item in (part.strip() for part in asked.split(",")):
        if item.isdecimal() and int(item) < len(gpus):
            found.append(gpus[int(item)])
            continue
        match = [gpu for gpu in gpus if item and gpu.uuid and gpu.uuid.startswith(item)]
        if len(match) != 1:
            break
        found += match
    return tuple(found)
