"""Limits a control group sets: memory, CPU quota and swap, v1 and v2, walking up every ancestor that can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantplan.hardware.tree import HostTree

# mm/page_counter.h: PAGE_COUNTER_MAX in bytes is LONG_MAX rounded down to a page; anything as large means no limit.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """One group's memory limit and what of it is still to be had. `soft` limits throttle instead of kill."""

    path: str
    limit_bytes: int
    available_bytes: int
    soft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """The tightest limits over this process's groups and their ancestors. None is no limit."""

    memory: MemoryLimit | None = None
    least_available_bytes: int | None = None
    quota_cpus: float | None = None
    quota_path: str | None = None
    swap_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    point: str
    controllers: frozenset[str]
    v2: bool


def read_limits(tree: HostTree) -> GroupLimits:
    """The limits that hold for this process."""
    memory: list[MemoryLimit] = []
    quotas: list[tuple[float, str]] = []
    swaps: list[int] = []
    for folder, mount in _folders(tree):
        if mount.v2 or "memory" in mount.controllers:
            memory += _memory(tree, folder, v2=mount.v2)
            swaps += _swap(tree, folder, v2=mount.v2)
        if mount.v2 or "cpu" in mount.controllers:
            quotas += _quota(tree, folder, v2=mount.v2)
    tightest = min(quotas, default=(None, None))
    return GroupLimits(
        memory=min(memory, key=lambda limit: limit.limit_bytes, default=None),
        least_available_bytes=min((limit.available_bytes for limit in memory), default=None),
        quota_cpus=tightest[0],
        quota_path=tightest[1],
        swap_bytes=min(swaps, default=None),
    )


def _folders(tree: HostTree) -> Iterator[tuple[str, _Mount]]:
    """Every visible folder from this process's groups up to the mount points, with its mount."""
    groups = _groups(tree)
    for mount in _mounts(tree):
        wanted = (
            path for controllers, path in groups if (not controllers if mount.v2 else controllers & mount.controllers)
        )
        for path in wanted:
            folder = mount.point + _below(path, mount.root)
            yield folder, mount
            while folder != mount.point and len(folder) > len(mount.point):
                folder = folder.rsplit("/", 1)[0]
                yield folder, mount
            break


def _groups(tree: HostTree) -> list[tuple[frozenset[str], str]]:
    """(controllers, path) of each line of /proc/self/cgroup; v2's line has no controllers."""
    lines = [line.split(":", 2) for line in (tree.text("proc/self/cgroup") or "").splitlines()]
    return [(frozenset(filter(None, parts[1].split(","))), parts[2]) for parts in lines if len(parts) == 3]


def _mounts(tree: HostTree) -> list[_Mount]:
    """The cgroup mounts of /proc/self/mountinfo: `id parent dev root point options … - type source super`."""
    mounts = []
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        ahead, behind = left.split(), right.split()
        if len(ahead) >= 5 and len(behind) >= 3 and behind[0] in ("cgroup", "cgroup2"):
            v2 = behind[0] == "cgroup2"
            mounts.append(_Mount(ahead[3], ahead[4].rstrip("/"), frozenset(behind[2].split(",")), v2))
    return mounts


def _below(path: str, root: str) -> str:
    """A group's path below its mount. A path outside the mounted part (a namespace's `/../x`) is the mount itself."""
    if root != "/" and (path + "/").startswith(root + "/"):
        path = path[len(root) :]
    elif root != "/" or "/.." in path:
        path = ""
    return path.rstrip("/")


def _memory(tree: HostTree, folder: str, *, v2: bool) -> list[MemoryLimit]:
    names = ("memory.max", "memory.high") if v2 else ("memory.limit_in_bytes",)
    used = tree.integer(f"{folder}/{'memory.current' if v2 else 'memory.usage_in_bytes'}") or 0
    found = []
    for name in names:
        limit = tree.integer(f"{folder}/{name}")
        if limit is None or limit >= _NO_LIMIT_BYTES:
            continue
        held = max(used - _page_cache(tree, folder), 0)
        soft = name == "memory.high"
        found.append(
            MemoryLimit(path=folder, limit_bytes=limit, available_bytes=max(limit - held, 0), soft=soft),
        )
    return found


def _page_cache(tree: HostTree, folder: str) -> int:
    """Bytes of file cache in a group's usage: the kernel takes them back when somebody needs memory."""
    stat = tree.pairs(f"{folder}/memory.stat")
    total = 0
    for key in ("active_file", "inactive_file"):
        value = stat.get(f"total_{key}", stat.get(key, "0"))  # v1 counts its children in total_*, v2 always does
        total += int(value) if value.isdecimal() else 0
    return total


def _swap(tree: HostTree, folder: str, *, v2: bool) -> list[int]:
    if v2:
        limit = tree.integer(f"{folder}/memory.swap.max")
        return [] if limit is None or limit >= _NO_LIMIT_BYTES else [limit]
    both = tree.integer(f"{folder}/memory.memsw.limit_in_bytes")
    memory = tree.integer(f"{folder}/memory.limit_in_bytes")
    return [] if both is None or memory is None or both >= _NO_LIMIT_BYTES else [max(both - memory, 0)]


def _quota(tree: HostTree, folder: str, *, v2: bool) -> list[tuple[float, str]]:
    """CPUs' worth of time a period allows, where it is limited."""
    if v2:
        parts = (tree.text(f"{folder}/cpu.max") or "").split()
        quota, period = (parts[0], parts[1]) if len(parts) == 2 else ("max", "0")
    else:
        quota = tree.text(f"{folder}/cpu.cfs_quota_us") or "-1"
        period = tree.text(f"{folder}/cpu.cfs_period_us") or "0"
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):
        return []
    return [(int(quota) / int(period), folder)]
