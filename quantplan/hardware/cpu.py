"""The processor: what it is, and how many threads the engine should be given."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from quantplan.hardware.cgroup import GroupLimits
from quantplan.hardware.facts import CpuFacts, NumaNode
from quantplan.hardware.tree import HostTree, cpu_list

# The kernel's names of what ggml-cpu has kernels for (ggml/src/ggml-cpu/CMakeLists.txt, ggml-cpu/arch/*).
_SIMD = (
    "sse3", "ssse3", "sse4_2", "avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vbmi",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2",
)  # fmt: skip
_X86_ALIASES = {"pni": "sse3"}  # arch/x86: the kernel prints SSE3 under its old name
# MIDR part numbers (Arm's technical reference manuals); /proc/cpuinfo on Arm has no model name.
_ARM_PARTS = {
    ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd40"): "Neoverse V1",
    ("0x41", "0xd49"): "Neoverse N2",
    ("0x41", "0xd4f"): "Neoverse V2",
    ("0x41", "0xd83"): "Neoverse V3-AE",
    ("0x41", "0xd85"): "Cortex-X925",
    ("0x41", "0xd87"): "Cortex-A725",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0xc0", "0xac3"): "Ampere-1",
}


def read_cpu(tree: HostTree, limits: GroupLimits, *, n_logical_here: int | None = None) -> CpuFacts:
    """The CPU of a Linux host. `n_logical_here` is assumed where neither sysfs nor cpuinfo count any."""
    processors = _processors(tree)
    online = cpu_list(tree.text("sys/devices/system/cpu/online")) or tuple(sorted(processors))
    online = online or tuple(range(n_logical_here or 1))
    allowed = _allowed(tree, online)
    cores = _cores(tree, online, processors)
    intel_fast = _intel_performance(tree, online)
    fast = intel_fast or _arm_performance(tree, online)
    n_threads, reason = choose_threads(allowed=allowed, cores=cores, fast=intel_fast, quota_cpus=limits.quota_cpus)
    first = processors[min(processors)] if processors else {}
    return CpuFacts(
        model=_model(processors, first),
        n_physical=len(set(cores.values())),
        n_logical=len(online),
        n_threads=n_threads,
        simd=_simd(first),
        n_performance=len({cores[cpu] for cpu in fast}) if fast else None,
        n_allowed=len(allowed),
        quota_cpus=limits.quota_cpus,
        numa_nodes=_numa(tree),
        cache_bytes=_last_level_cache(tree, online),
        threads_reason=reason,
        allowed=allowed,
    )


def choose_threads(
    *, allowed: tuple[int, ...], cores: dict[int, object], fast: frozenset[int], quota_cpus: float | None
) -> tuple[int, str]:
    """How many threads the engine should be given, and what decided it.

    Physical cores among the allowed CPUs; of those the `fast` ones where the engine's own default skips the others
    (common/common.cpp, common_cpu_get_num_math: Intel's efficiency cores, not Arm's); never more than the whole CPUs
    of the quota: a thread over it stalls all others.
    """
    physical = {cores[cpu] for cpu in allowed}
    quick = {cores[cpu] for cpu in allowed if cpu in fast}
    n_threads, reason = len(physical), "physical cores"
    if len(allowed) < len(cores):
        reason = "physical cores that affinity and cpuset allow"
    if quick and len(quick) < len(physical):
        n_threads, reason = len(quick), "performance cores"
    if quota_cpus is not None and math.floor(quota_cpus) < n_threads:
        n_threads, reason = math.floor(quota_cpus), "CPU quota"
    return max(n_threads, 1), reason


def _processors(tree: HostTree) -> dict[int, dict[str, str]]:
    """/proc/cpuinfo by processor number."""
    found: dict[int, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in (tree.text("proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            continue
        key, value = key.strip(), value.strip()
        if key == "processor" and value.isdecimal():
            current = found.setdefault(int(value), {})
        current[key] = value
    return found


def _allowed(tree: HostTree, online: tuple[int, ...]) -> tuple[int, ...]:
    """CPUs this process may run on: the kernel's answer has affinity and cpuset in it already."""
    status = tree.pairs("proc/self/status").get("Cpus_allowed_list")
    allowed = tuple(cpu for cpu in cpu_list(status) if cpu in set(online))
    return allowed or online


def _cores(tree: HostTree, online: tuple[int, ...], processors: dict[int, dict[str, str]]) -> dict[int, object]:
    """The physical core of each CPU: siblings from sysfs, else (socket, core) of cpuinfo, else one core each."""
    cores: dict[int, object] = {}
    for cpu in online:
        siblings = tree.text(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        told = processors.get(cpu, {})
        if siblings:
            cores[cpu] = min(cpu_list(siblings), default=cpu)
        elif "core id" in told:
            cores[cpu] = (told.get("physical id", "0"), told["core id"])
        else:
            cores[cpu] = cpu
    return cores


def _intel_performance(tree: HostTree, online: tuple[int, ...]) -> frozenset[int]:
    """Intel's performance cores on a hybrid part, else empty."""
    fast = set(cpu_list(tree.text("sys/devices/cpu_core/cpus")))
    return frozenset(fast & set(online)) if tree.text("sys/devices/cpu_atom/cpus") else frozenset()


def _arm_performance(tree: HostTree, online: tuple[int, ...]) -> frozenset[int]:
    """The CPUs with the largest capacity where others have less than three quarters of it, else empty."""
    capacity = {cpu: tree.integer(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") or 0 for cpu in online}
    top = max(capacity.values(), default=0)
    if top == 0 or min(capacity.values()) * 4 >= top * 3:  # cores of one kind differ by a few percent of boost
        return frozenset()
    return frozenset(cpu for cpu, value in capacity.items() if value * 4 >= top * 3)


def _model(processors: dict[int, dict[str, str]], first: dict[str, str]) -> str | None:
    name = first.get("model name") or first.get("cpu model")
    if name:
        return " ".join(name.split())
    kinds = {(told.get("CPU implementer", ""), told.get("CPU part", "")) for told in processors.values()} - {("", "")}
    known = sorted(_ARM_PARTS.get(kind, f"Arm {kind[0]}:{kind[1]}") for kind in kinds)
    return " + ".join(known) or None


def _simd(first: dict[str, str]) -> tuple[str, ...]:
    flags = (first.get("flags") or first.get("Features") or "").split()
    have = {_X86_ALIASES.get(flag, flag) for flag in flags}
    return tuple(flag for flag in _SIMD if flag in have)


def _numa(tree: HostTree) -> tuple[NumaNode, ...]:
    folder = "sys/devices/system/node"
    nodes = []
    for name in tree.names(folder, r"node\d+"):
        kib = re.search(r"MemTotal:\s*(\d+)", tree.text(f"{folder}/{name}/meminfo") or "")
        cpus = cpu_list(tree.text(f"{folder}/{name}/cpulist"))
        total = int(kib[1]) * 1024 if kib else None
        nodes.append(NumaNode(node=int(name[4:]), cpus=cpus, total_bytes=total))
    whole = re.match(r"\d+", tree.pairs("proc/meminfo").get("MemTotal", ""))
    told = sum(node.total_bytes or 0 for node in nodes)
    if whole and told * 10 < int(whole[0]) * 1024 * 9:  # virtual machines that grow show what they started with
        nodes = [replace(node, total_bytes=None) for node in nodes]
    return tuple(nodes)


def _last_level_cache(tree: HostTree, online: tuple[int, ...]) -> int | None:
    """All last-level caches together: what a bandwidth measurement must be larger than."""
    found: dict[tuple[int, ...], int] = {}
    deepest = 0
    for cpu in online:
        for index in tree.names(f"sys/devices/system/cpu/cpu{cpu}/cache", r"index\d+"):
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/{index}"
            level, size = tree.integer(f"{folder}/level") or 0, tree.text(f"{folder}/size") or ""
            if level < 2 or not size.endswith("K") or not size[:-1].isdecimal():
                continue
            if level > deepest:
                deepest, found = level, {}
            if level == deepest:
                found[cpu_list(tree.text(f"{folder}/shared_cpu_list")) or (cpu,)] = int(size[:-1]) * 1024
    return sum(found.values()) or None
