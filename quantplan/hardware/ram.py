"""Host memory: what the kernel has, what a control group leaves, and where pages go when it is full."""

from __future__ import annotations

from quantplan.hardware.cgroup import GroupLimits
from quantplan.hardware.facts import RamFacts
from quantplan.hardware.tree import HostTree


def read_ram(tree: HostTree, limits: GroupLimits) -> tuple[RamFacts, tuple[str, ...]]:
    """Memory of a Linux host, cut to the tightest limit, and warnings about what was assumed."""
    meminfo = tree.pairs("proc/meminfo")
    total, available = _kib(meminfo, "MemTotal"), _kib(meminfo, "MemAvailable")
    warnings = []
    if total is None:
        warnings.append("the kernel does not say how much memory there is; assumed 0 bytes of RAM")
        total = 0
    if available is None:
        parts = [_kib(meminfo, key) or 0 for key in ("MemFree", "Buffers", "Cached")]
        available = min(sum(parts), total)
    if available > total:
        warnings.append("the kernel says more memory is available than there is; assumed all of it is")
        available = total
    limit = limits.memory if limits.memory is not None and limits.memory.limit_bytes < total else None
    left = limits.least_available_bytes if limits.least_available_bytes is not None else available
    return RamFacts(
        total_bytes=limit.limit_bytes if limit else total,
        available_bytes=min(available, left),
        limit_bytes=limit.limit_bytes if limit else None,
        physical_bytes=total,
        limit_path=limit.path if limit else None,
        swap_total_bytes=_kib(meminfo, "SwapTotal"),
        swap_free_bytes=_kib(meminfo, "SwapFree"),
        swap_limit_bytes=limits.swap_bytes,
        zram_bytes=_zram(tree),
    ), tuple(warnings)


def _kib(meminfo: dict[str, str], key: str) -> int | None:
    value = meminfo.get(key, "").split()
    return int(value[0]) * 1024 if value and value[0].isdecimal() else None


def _zram(tree: HostTree) -> int | None:
    """Bytes of swap that is compressed memory, of the swap in use; None where there is none."""
    lines = [line.split() for line in (tree.text("proc/swaps") or "").splitlines()[1:]]
    sizes = [
        int(parts[2]) * 1024 for parts in lines if len(parts) >= 4 and "/zram" in parts[0] and parts[2].isdecimal()
    ]
    return sum(sizes) if sizes else None
