"""What the search asks: memory, speed, quality. The answers come in as functions, so the search stays pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.memory.placement import ContextParams
from quantplan.planner.outline import Outline
from quantplan.planner.request import USUAL_N_CTX, Capacity, Objective, PlanRequest, Setting

_ALL_SUBSETS_UP_TO = 3  # GPUs
_FEWER = (4, 2, 1)  # of more GPUs, all and the first few
_FREE_CONTEXTS = 4  # times the usual: so far context is taken where it costs nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """The model on the host, as far as the search needs them. The host is the last of `capacities`.

    `speed_of(setting, n_depth, n_active)` is (decode of all slots, prefill) in tokens a second, 0 where unknown;
    `damage_of` the expected mean KL divergence in nats; `objection` what speaks against a preset, or None.
    """

    n_layer: int
    n_ctx_train: int
    expert_share: float
    capacities: tuple[Capacity, ...]
    outline_of: Callable[[str], Outline]
    context_of: Callable[[Setting], ContextParams]
    memory_of: Callable[[Setting], tuple[DeviceMemory, ...]]
    speed_of: Callable[[Setting, int, int], tuple[float, float]]
    damage_of: Callable[[str], float]
    objection: Callable[[str], str | None]
    free_disk_bytes: int | None = None
    own: str | None = None  # a finished file's preset: no other can be chosen

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(capacity.name for capacity in self.capacities if capacity.name != HOST)

    def capacity(self, name: str) -> Capacity:
        return next(capacity for capacity in self.capacities if capacity.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values that may be chosen, each best first; devices are subsets of the GPUs, () the CPU alone."""

    quants: tuple[str, ...]
    kv_types: tuple[tuple[str, str], ...]
    n_parallels: tuple[int, ...]
    devices: tuple[tuple[str, ...], ...]
    n_ubatches: tuple[int, ...]
    contexts: tuple[int, ...]  # ascending

    def n_raw(self, n_layer: int, *, has_experts: bool) -> int:
        """Candidates before any pruning; one way to split layers over several GPUs counts once."""
        layers = n_layer + 2
        placements = sum((layers * (n_layer + 1) if has_experts else layers) if gpus else 1 for gpus in self.devices)
        axes = (self.quants, self.kv_types, self.n_parallels, self.n_ubatches, self.contexts)
        total = placements
        for axis in axes:
            total *= len(axis)
        return total


def space_of(request: PlanRequest, tools: Instruments, *, slots: Sequence[int]) -> Space:
    """What the request leaves open on this host."""
    return Space(
        quants=request.quants,
        kv_types=request.kv_types,
        n_parallels=(request.n_parallel,) if request.n_parallel else tuple(slots),
        devices=device_sets(request, tools),
        n_ubatches=tuple(sorted(request.n_ubatches)),
        contexts=contexts(request, tools.n_ctx_train),
    )


def device_sets(request: PlanRequest, tools: Instruments) -> tuple[tuple[str, ...], ...]:
    """Subsets of the GPUs in the engine's order, and the CPU alone."""
    if request.devices is not None:
        return (request.devices,)
    gpus = tools.gpus
    if len(gpus) <= _ALL_SUBSETS_UP_TO:
        sets = [found for n in range(len(gpus), -1, -1) for found in combinations(gpus, n)]
        return tuple(sets)
    return (gpus, *(gpus[:n] for n in _FEWER if n < len(gpus)), ())


def contexts(request: PlanRequest, n_ctx_train: int) -> tuple[int, ...]:
    """Contexts to choose from: the asked one; else the least, and its doubles as far as the objective goes."""
    if request.n_ctx is not None:
        return (request.n_ctx,)
    least = least_context(request, n_ctx_train)
    most = n_ctx_train or least
    if request.objective is Objective.THROUGHPUT:
        most = least
    elif request.objective is not Objective.CONTEXT:
        most = min(most, _FREE_CONTEXTS * USUAL_N_CTX)
    found = [least]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    if request.objective is Objective.CONTEXT:  # halfway too: it is what is asked for
        found = sorted({*found, *(n for n in (one * 3 // 2 for one in found) if n < most)})
    return tuple(dict.fromkeys((*found, max(most, least))))


def least_context(request: PlanRequest, n_ctx_train: int) -> int:
    """The context that every candidate has: asked, or the usual."""
    return request.n_ctx or request.n_ctx_min or min(USUAL_N_CTX, n_ctx_train or USUAL_N_CTX)


def depth_of(request: PlanRequest, n_ctx_train: int, n_ctx: int) -> int:
    """Tokens in the context when the speed of a candidate of n_ctx is judged: the same for all, so that a longer one
    does not look slower; with the objective `context` its own whole length, since it is meant to be filled."""
    if request.n_depth is not None:
        return request.n_depth
    return n_ctx if request.objective is Objective.CONTEXT else least_context(request, n_ctx_train)


def shortage(needs: Sequence[DeviceMemory], capacities: Mapping[str, Capacity]) -> tuple[DeviceMemory, Capacity] | None:
    """The first device that has less than is needed, or None when all fit. Devices that share the host's RAM are
    counted on the host too."""
    shared = sum(need.total_bytes for need in needs if need.name != HOST and capacities[need.name].unified)
    for need in needs:
        capacity = capacities.get(need.name)
        if capacity is None:
            continue
        total = need.total_bytes + (shared if need.name == HOST else 0)
        if total > capacity.usable_bytes:
            return need, capacity
    return None
