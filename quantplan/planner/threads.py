"""Threads and where they run: from affinity, cpuset, quota and memory nodes."""

from __future__ import annotations

from dataclasses import dataclass

from quantplan.hardware.facts import CpuFacts, NumaNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """What the server is told, with the reason of each. None: the flag is left out."""

    n_threads: int
    n_threads_batch: int
    numa: str | None
    cpu_range: str | None
    why: tuple[str, ...]


def choose(cpu: CpuFacts, *, weights_on_host: bool) -> Threads:
    """One thread a physical core that may be used, spread over the memory nodes that hold weights.

    `distribute` only where threads may run on several nodes and weights are read from RAM: then every node's memory
    channels work. `isolate` where affinity keeps the process on one node of several.
    """
    why = [f"{cpu.n_threads} threads: {cpu.threads_reason}"]
    nodes = _nodes(cpu)
    numa = None
    if len(nodes) > 1 and weights_on_host:
        numa = "distribute"
        why.append(f"--numa distribute: weights are read from the memory of {len(nodes)} nodes at once")
    elif len(nodes) > 1:
        why.append(f"no --numa: {len(nodes)} memory nodes, but next to nothing of the model is read from RAM")
    elif len(cpu.numa_nodes) > 1 and weights_on_host:
        numa = "isolate"
        why.append(f"--numa isolate: this process may only run on node {nodes[0].node}" if nodes else "--numa isolate")
    cpu_range = _range(cpu)
    if cpu_range:
        why.append(f"--cpu-range {cpu_range}: affinity and cpuset leave these of {cpu.n_logical} CPUs")
    return Threads(
        n_threads=cpu.n_threads, n_threads_batch=cpu.n_threads, numa=numa, cpu_range=cpu_range, why=tuple(why)
    )


def _nodes(cpu: CpuFacts) -> tuple[NumaNode, ...]:
    """Memory nodes with CPUs that may be used."""
    allowed = set(cpu.allowed)
    return tuple(node for node in cpu.numa_nodes if node.cpus and (not allowed or allowed & set(node.cpus)))


def _range(cpu: CpuFacts) -> str | None:
    """The allowed CPUs, where they are fewer than the host has and without a gap: a range cannot say more."""
    allowed = sorted(cpu.allowed)
    if not allowed or len(allowed) >= cpu.n_logical or allowed[-1] - allowed[0] + 1 != len(allowed):
        return None
    return f"{allowed[0]}-{allowed[-1]}"
