"""What a plan needs to know of a host. Unknown is None, never 0."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One device, named as the engine names it (`CUDA0`)."""

    name: str
    product: str
    vendor: str  # nvidia | amd | intel | apple
    total_bytes: int
    free_bytes: int
    uuid: str | None = None
    bandwidth_bytes_per_s: int | None = None
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """`n_threads` is what the engine should be given: physical cores within affinity, cpuset and quota (floor)."""

    model: str | None
    n_physical: int
    n_logical: int
    n_threads: int
    simd: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFacts:
    """total_bytes and available_bytes are already cut to the tightest cgroup limit (`limit_bytes`)."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    bandwidth_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host. `warnings` say what could not be probed and what was assumed instead."""

    os: str
    cpu: CpuFacts
    ram: RamFacts
    gpus: tuple[GpuFacts, ...] = ()
    warnings: tuple[str, ...] = ()

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
