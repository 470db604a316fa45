"""Choosing among candidates. Pure: memory comes in as a function, the host as capacities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quantplan.errors import BadValue, DoesNotFit
from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.planner.request import USUAL_N_CTX, Capacity, PlanRequest, Setting
from quantplan.units import format_mib

MemoryOf = Callable[[Setting], tuple[DeviceMemory, ...]]
_CONTEXT_STEPS = (4, 2, 1)  # times the usual context, as long as it costs neither preset nor offload


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A candidate that fits, its memory, and why it was taken."""

    setting: Setting
    needs: tuple[DeviceMemory, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A candidate that was not taken, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The choice, others that fit, and what was rejected."""

    choice: Choice
    alternatives: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]


def search(
    request: PlanRequest, *, n_layer: int, n_ctx_train: int, capacities: Sequence[Capacity], memory_of: MemoryOf
) -> Found:
    """The best preset that runs whole on the GPUs; else Q4_K_M with as many layers there as fit; without a GPU
    the smallest preset of little damage. Raises DoesNotFit with the smallest candidate's need."""
    _check(request, n_ctx_train)
    hosts = {capacity.name: capacity for capacity in capacities}
    all_layers = n_layer + 1 if len(hosts) > 1 else 0  # the head counts as one layer
    n_ctx = request.n_ctx or min(USUAL_N_CTX, n_ctx_train or USUAL_N_CTX)
    rejected: list[Rejected] = []
    fitting: list[Choice] = []
    for quant in request.quants:
        setting = _setting(request, quant, n_ctx, all_layers)
        choice = _fit(setting, hosts, memory_of, rejected) or _partial(setting, hosts, memory_of)
        if choice:
            fitting.append(choice)
    if not fitting:
        raise _too_large(_setting(request, request.quants[-1], n_ctx, 0), hosts, memory_of)
    best = _best(fitting, all_layers, request)
    if request.n_ctx is None:
        best = _widened(best, n_ctx_train, hosts, memory_of)
    others = tuple(choice for choice in fitting if choice.setting.quant != best.setting.quant)
    return Found(choice=best, alternatives=others, rejected=tuple(rejected))


def _check(request: PlanRequest, n_ctx_train: int) -> None:
    if request.n_ctx is not None and request.n_ctx < 1:
        raise BadValue(what="context", value=request.n_ctx, why="is not a number of tokens above 0")
    if request.n_parallel < 1:
        raise BadValue(what="slots", value=request.n_parallel, why="is not a number above 0")
    if not request.quants:
        raise BadValue(what="presets", value=None, why="leave nothing to choose from")


def _setting(request: PlanRequest, quant: str, n_ctx: int, n_gpu_layers: int) -> Setting:
    return Setting(
        quant=quant, n_ctx=n_ctx, n_parallel=request.n_parallel, n_gpu_layers=n_gpu_layers, type_k=request.type_k,
        type_v=request.type_v, n_batch=request.n_batch, n_ubatch=request.n_ubatch,
    )  # fmt: skip


def shortage(needs: Sequence[DeviceMemory], capacities: dict[str, Capacity]) -> tuple[DeviceMemory, Capacity] | None:
    """The first device that has less than is needed, or None when all fit."""
    for need in needs:
        capacity = capacities.get(need.name)
        if capacity is not None and need.total_bytes > capacity.usable_bytes:
            return need, capacity
    return None


def _fit(
    setting: Setting, capacities: dict[str, Capacity], memory_of: MemoryOf, rejected: list[Rejected]
) -> Choice | None:
    needs = memory_of(setting)
    short = shortage(needs, capacities)
    if short is None:
        where = "every layer on the GPU" if setting.n_gpu_layers else "all in RAM"
        return Choice(setting=setting, needs=needs, why=(f"{setting.quant} fits with {where}",))
    need, capacity = short
    layers = f" with all {setting.n_gpu_layers} layers on the GPU" if setting.n_gpu_layers else ""
    why = f"{need.name} needs {format_mib(need.total_bytes)}, {format_mib(capacity.usable_bytes)} may be used"
    rejected.append(Rejected(what=f"{setting.quant} at {setting.n_ctx:,} tokens{layers}", why=why))
    return None


def _partial(setting: Setting, capacities: dict[str, Capacity], memory_of: MemoryOf) -> Choice | None:
    """The most layers that fit on the devices, the others on the host; found by bisection, since more layers on a
    device never need less there."""
    if setting.n_gpu_layers == 0:
        return None
    fits: Choice | None = None
    low, high = 0, setting.n_gpu_layers - 1
    while low <= high:
        middle = (low + high) // 2
        tried = replace(setting, n_gpu_layers=middle)
        needs = memory_of(tried)
        short = shortage(needs, capacities)
        if short is None:
            why = f"{middle} of {setting.n_gpu_layers} layers fit on the GPU, the others stay on the host"
            fits = Choice(setting=tried, needs=needs, why=(why,))
        if short is None or short[0].name == HOST:  # a host that is too full wants more layers on the devices
            low = middle + 1
        else:
            high = middle - 1
    return fits


def _best(fitting: Sequence[Choice], all_layers: int, request: PlanRequest) -> Choice:
    """Whole on the GPU beats a better preset; on a host alone the smallest of little damage is the fastest."""
    whole = [choice for choice in fitting if all_layers and choice.setting.n_gpu_layers == all_layers]
    good = [choice for choice in whole if request.quants.index(choice.setting.quant) <= _floor(request)]
    if good:
        reason = "the best preset that runs wholly on the GPU"
        return replace(good[0], why=(*good[0].why, reason))
    usual = next((choice for choice in fitting if choice.setting.quant == "Q4_K_M"), None)
    chosen = usual or (whole or list(fitting))[0]
    where = "part of every token comes from host memory" if all_layers else "every token reads all weights from RAM"
    reason = f"{where}: the fewest bytes of little published damage are the fastest"
    return replace(chosen, why=(*chosen.why, reason if usual else "nothing better fits"))


def _floor(request: PlanRequest) -> int:
    return request.quants.index("Q4_K_M") if "Q4_K_M" in request.quants else len(request.quants) - 1


def _widened(choice: Choice, n_ctx_train: int, capacities: dict[str, Capacity], memory_of: MemoryOf) -> Choice:
    """A longer context where it costs neither preset nor offload."""
    for factor in _CONTEXT_STEPS:
        n_ctx = min(USUAL_N_CTX * factor, n_ctx_train) if n_ctx_train else choice.setting.n_ctx
        if n_ctx <= choice.setting.n_ctx:
            continue
        wider = replace(choice.setting, n_ctx=n_ctx)
        needs = memory_of(wider)
        if shortage(needs, capacities) is None:
            why = f"{n_ctx:,} tokens of context fit without a smaller preset or less offload"
            return Choice(setting=wider, needs=needs, why=(*choice.why, why))
    return choice


def _too_large(setting: Setting, capacities: dict[str, Capacity], memory_of: MemoryOf) -> DoesNotFit:
    short = shortage(memory_of(setting), capacities)
    need, capacity = short if short else (memory_of(setting)[-1], capacities[HOST])
    return DoesNotFit(
        device=need.name, need_bytes=need.total_bytes, free_bytes=capacity.usable_bytes,
        what=f"the smallest preset ({setting.quant}) at {setting.n_ctx:,} tokens",
    )  # fmt: skip
