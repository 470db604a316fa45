"""Threads, --numa and --cpu-range from what the host lets us use."""

from __future__ import annotations

from quantplan.hardware.facts import CpuFacts, NumaNode
from quantplan.planner.threads import choose

TWO = (NumaNode(node=0, cpus=tuple(range(16))), NumaNode(node=1, cpus=tuple(range(16, 32))))


def cpu(*, n_threads: int = 32, allowed: tuple[int, ...] = (), nodes: tuple[NumaNode, ...] = ()) -> CpuFacts:
    return CpuFacts(model="test", n_physical=32, n_logical=32, n_threads=n_threads, numa_nodes=nodes, allowed=allowed)


def test_one_node_needs_nothing() -> None:
    found = choose(cpu(), weights_on_host=True)
    assert (found.n_threads, found.n_threads_batch, found.numa, found.cpu_range) == (32, 32, None, None)


def test_weights_in_the_memory_of_two_nodes_are_read_from_both() -> None:
    assert choose(cpu(nodes=TWO), weights_on_host=True).numa == "distribute"
    assert choose(cpu(nodes=TWO), weights_on_host=False).numa is None


def test_affinity_to_one_node_isolates_and_names_the_range() -> None:
    found = choose(cpu(nodes=TWO, allowed=tuple(range(16, 32)), n_threads=16), weights_on_host=True)
    assert (found.numa, found.cpu_range, found.n_threads) == ("isolate", "16-31", 16)
    assert any("node 1" in said for said in found.why)


def test_a_cpuset_with_a_gap_has_no_range() -> None:
    assert choose(cpu(allowed=(0, 1, 4, 5), n_threads=4), weights_on_host=True).cpu_range is None
    assert choose(cpu(allowed=tuple(range(32))), weights_on_host=True).cpu_range is None


def test_every_number_has_its_reason() -> None:
    found = choose(cpu(nodes=TWO, allowed=tuple(range(8)), n_threads=8), weights_on_host=True)
    assert found.why[0] == "8 threads: physical cores"
    assert len(found.why) == 3
