"""What a plan needs to know of a host. Unknown is None, never 0."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieFacts:
    """A card's link now and at best. A link slows down when idle, so `generation` alone proves nothing; the width does
    not change with load. `max_width` and `max_generation` are what card and slot can do together where the driver
    says so; `card_generation` is what the card alone could."""

    generation: int | None = None
    width: int | None = None
    max_generation: int | None = None
    max_width: int | None = None
    card_generation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """Somebody who holds memory of a card. `used_bytes` is None where the driver does not tell (WSL2, containers)."""

    pid: int
    used_bytes: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One device, named as the engine names it (`CUDA0`). A MIG instance is a device of its own.

    `free_bytes` is what the driver calls free; `reserved_bytes` (firmware, page tables) is in neither free nor used.
    `unified` devices share the host's RAM: their bytes are not on top of it.
    `bandwidth_source` is `clocks` (2 x memory clock x bus width), `driver`, `table` (datasheet), `given` or `measured`.
    """

    name: str
    product: str
    vendor: str  # nvidia | amd | intel | apple
    total_bytes: int
    free_bytes: int
    uuid: str | None = None
    bandwidth_bytes_per_s: int | None = None
    compute_capability: tuple[int, int] | None = None
    bandwidth_source: str | None = None
    reserved_bytes: int | None = None
    unified: bool = False
    mig_profile: str | None = None
    mig_parent: str | None = None
    bus_id: str | None = None
    numa_node: int | None = None
    bus_width_bits: int | None = None
    memory_clock_hz: int | None = None
    pcie: PcieFacts | None = None
    nvlink_active: int | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    power_draw_w: float | None = None
    temperature_c: int | None = None
    temperature_slowdown_c: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    spec_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """One memory node: its CPUs and its bytes."""

    node: int
    cpus: tuple[int, ...]
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """`n_threads` is what the engine should be given: physical cores within affinity, cpuset and quota (floor).

    `n_allowed` counts the logical CPUs that affinity and cpuset leave; `quota_cpus` is the tightest cgroup quota.
    `n_performance` is None where the cores are all alike.
    """

    model: str | None
    n_physical: int
    n_logical: int
    n_threads: int
    simd: tuple[str, ...] = ()
    n_performance: int | None = None
    n_allowed: int | None = None
    quota_cpus: float | None = None
    numa_nodes: tuple[NumaNode, ...] = ()
    cache_bytes: int | None = None
    threads_reason: str = "physical cores"
    allowed: tuple[int, ...] = ()  # the logical CPUs that affinity and cpuset leave; () is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFacts:
    """total_bytes and available_bytes are already cut to the tightest cgroup limit (`limit_bytes`).

    `physical_bytes` is what the kernel has, before any limit. `limit_path` is the cgroup that sets the limit.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    bandwidth_bytes_per_s: int | None = None
    physical_bytes: int | None = None
    limit_path: str | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    swap_limit_bytes: int | None = None
    zram_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """The file system under a folder. `kind` is nvme | ssd | hdd | virtual | network | memory, or None.

    `holes` and `reflinks` say whether a file may be sparse and whether two files may share blocks; None is not known.
    """

    path: str
    device: str | None
    filesystem: str | None
    kind: str | None
    total_bytes: int
    free_bytes: int
    holes: bool | None = None
    reflinks: bool | None = None
    model: str | None = None
    read_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """The ground the engine stands on. `container` is docker | podman | kubernetes | lxc | systemd-nspawn, or None.

    `driver` is the NVIDIA kernel driver's version, `driver_cuda` the newest CUDA it can run, `nvcc` the compiler's.
    """

    kernel: str | None = None
    machine: str | None = None
    distribution: str | None = None
    wsl: int | None = None
    container: str | None = None
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    nvcc: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host. `warnings` say what could not be probed and what was assumed instead."""

    os: str
    cpu: CpuFacts
    ram: RamFacts
    gpus: tuple[GpuFacts, ...] = ()
    warnings: tuple[str, ...] = ()
    disk: DiskFacts | None = None
    system: SystemFacts | None = None
    profile: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what does not change between two looks at the same machine."""
        stable = {
            "os": self.os,
            "cpu": [self.cpu.model, self.cpu.n_physical, self.cpu.n_logical],
            "ram": self.ram.total_bytes,
            "gpus": [[g.product, g.uuid, g.total_bytes] for g in self.gpus],
        }
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "fingerprint": self.fingerprint}
