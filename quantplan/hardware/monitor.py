"""Samples of a host while a model serves: memory, temperature, power and throttling of its cards, RAM, swap, disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantplan.hardware.bounded import TookTooLong, bounded
from quantplan.hardware.cgroup import read_limits
from quantplan.hardware.facts import GpuFacts, RamFacts
from quantplan.hardware.nvidia import read_nvidia
from quantplan.hardware.nvml import Nvml
from quantplan.hardware.ram import read_ram
from quantplan.hardware.tree import HostTree

_NVML_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """One card at one moment. `over_plan_bytes` is what it holds beyond the plan's figure for it, below 0 is less."""

    name: str
    used_bytes: int
    total_bytes: int
    temperature_c: int | None
    power_w: float | None
    throttle_reasons: tuple[str, ...]
    over_plan_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A host at one moment (`at`: seconds since 1970). Rates are over the time since the sample before; None at first.

    `disk_wait` is the share of time in which some task waited for a disk (the kernel's pressure figure), `memory_wait`
    for memory; None where the kernel keeps no such account. `swap_in_bytes_per_s` above 0 means tokens wait."""

    at: float
    devices: tuple[DeviceSample, ...]
    available_bytes: int
    used_bytes: int
    over_plan_bytes: int | None
    swap_in_bytes_per_s: float | None
    swap_out_bytes_per_s: float | None
    disk_wait: float | None
    memory_wait: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBytes:
    """What a plan says will be used: on the host, and by device name."""

    host_bytes: int | None = None
    device_bytes: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Counters:
    at: float
    swapped_in: int
    swapped_out: int
    disk_wait_us: int | None
    memory_wait_us: int | None


def watch(
    *,
    nvml: Nvml | None,
    root: Path = Path("/"),
    env: Mapping[str, str] | None = None,
    planned: PlannedBytes | None = None,
    interval_s: float = 1.0,
    count: int | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Sample]:
    """Samples every `interval_s` seconds, `count` of them or for ever. Without a GPU there are no devices in them."""
    tree, plan = HostTree(root), planned or PlannedBytes()
    before: _Counters | None = None
    taken = 0
    while count is None or taken < count:
        if taken:
            sleep(interval_s)
        now = _counters(tree, clock())
        ram, _ = read_ram(tree, read_limits(tree))
        yield _sample(now, before, ram, _devices(nvml, ram, env or {}, plan), plan)
        before, taken = now, taken + 1


def _sample(
    now: _Counters, before: _Counters | None, ram: RamFacts, devices: tuple[DeviceSample, ...], plan: PlannedBytes
) -> Sample:
    used = ram.total_bytes - ram.available_bytes
    seconds = now.at - before.at if before else 0.0

    def rate(after: int | None, earlier: int | None) -> float | None:
        return (after - earlier) / seconds if after is not None and earlier is not None and seconds > 0 else None

    return Sample(
        at=now.at,
        devices=devices,
        available_bytes=ram.available_bytes,
        used_bytes=used,
        over_plan_bytes=used - plan.host_bytes if plan.host_bytes is not None else None,
        swap_in_bytes_per_s=rate(now.swapped_in, before.swapped_in if before else None),
        swap_out_bytes_per_s=rate(now.swapped_out, before.swapped_out if before else None),
        disk_wait=_share(rate(now.disk_wait_us, before.disk_wait_us if before else None)),
        memory_wait=_share(rate(now.memory_wait_us, before.memory_wait_us if before else None)),
    )


def _share(microseconds_per_s: float | None) -> float | None:
    return None if microseconds_per_s is None else round(min(microseconds_per_s / 1e6, 1.0), 4)


def _counters(tree: HostTree, at: float) -> _Counters:
    stat = tree.pairs("proc/vmstat")
    page = os.sysconf("SC_PAGE_SIZE")

    def pages(key: str) -> int:
        value = stat.get(key, "0")
        return int(value) * page if value.isdecimal() else 0

    return _Counters(at, pages("pswpin"), pages("pswpout"), _pressure(tree, "io"), _pressure(tree, "memory"))


def _pressure(tree: HostTree, what: str) -> int | None:
    """Microseconds since boot in which some task waited: `some avg10=… total=N` of /proc/pressure."""
    for line in (tree.text(f"proc/pressure/{what}") or "").splitlines():
        if line.startswith("some "):
            total = line.rsplit("total=", 1)[-1]
            return int(total) if total.isdecimal() else None
    return None


def _devices(nvml: Nvml | None, ram: RamFacts, env: Mapping[str, str], plan: PlannedBytes) -> tuple[DeviceSample, ...]:
    if nvml is None:
        return ()
    door = nvml
    try:
        gpus = bounded(lambda: read_nvidia(door, ram, env=env), timeout_s=_NVML_TIMEOUT_S).gpus
    except TookTooLong:
        return ()
    return tuple(_device(gpu, (plan.device_bytes or {}).get(gpu.name)) for gpu in gpus)


def _device(gpu: GpuFacts, planned: int | None) -> DeviceSample:
    used = gpu.total_bytes - gpu.free_bytes - (gpu.reserved_bytes or 0)
    return DeviceSample(
        name=gpu.name,
        used_bytes=used,
        total_bytes=gpu.total_bytes,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_draw_w,
        throttle_reasons=gpu.throttle_reasons,
        over_plan_bytes=used - planned if planned is not None else None,
    )
