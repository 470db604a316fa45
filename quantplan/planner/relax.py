"""Nothing fits: which single change would make it, the smallest first, and which two constraints contradict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from quantplan.errors import Contradiction, NothingFits
from quantplan.memory.estimate import HOST
from quantplan.planner.candidates import Choice, capacities_for, describe, too_large_for_disk
from quantplan.planner.instruments import least_context
from quantplan.planner.outline import frame_of
from quantplan.planner.request import PRESETS, PlanRequest, Setting
from quantplan.planner.search import Search
from quantplan.units import MIB

_CACHES = (("q8_0", "q8_0"), ("q4_0", "q4_0"))
_CONTEXT_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change that makes it fit. `what` is one of speed, slots, cache, context, presets, devices, ram, disk."""

    what: str
    value: str
    choice: Choice
    asked: bool  # the user had set it


def refusal(
    search: Search, request: PlanRequest, *, with_changes: bool = True
) -> NothingFits | Contradiction:  # fmt: skip
    """The error to raise where `search.best(request)` found nothing. Which change would help takes as long as several
    searches: a look at many models leaves it out."""
    changes = list(_changes(search, request)) if with_changes else list(_speed_change(search, request))
    own = [change for change in changes if change.asked]
    need, have, device, what = _smallest(search, request)
    told = tuple((change.what, change.value) for change in changes)
    if len(own) > 1:
        names = tuple(_named(change, request) for change in own[:2])
        return Contradiction(first=names[0], second=names[1], changes=told)
    return NothingFits(device=device, need_bytes=need, free_bytes=have, what=what, changes=told,
                       why=_other_reason(search, request, changes))  # fmt: skip


def _other_reason(search: Search, request: PlanRequest, changes: Sequence[Change]) -> str | None:
    """Why nothing fits where it is not the memory: the speed that is asked for, or the disk."""
    first = changes[0] if changes else None
    if first is not None and first.what == "speed":
        return f"no plan reaches {request.min_tokens_per_s:g} tokens/s here: the fastest decodes at {first.value}"
    if first is not None and first.what == "disk":
        found = (too_large_for_disk(request, search.tools, quant) for quant in request.quants)
        told = [f"{one.what}: {one.why}" for one in found if one is not None]
        return told[-1] if told else None
    return None


def _speed_change(search: Search, request: PlanRequest) -> Iterator[Change]:
    if request.min_tokens_per_s is not None:
        fastest = search.best(replace(request, min_tokens_per_s=None))
        if fastest is not None:
            value = f"{int(fastest.merits.decode * 10) / 10:g}"
            yield Change(what="speed", value=value, choice=fastest, asked=True)


def _changes(search: Search, request: PlanRequest) -> Iterator[Change]:
    yield from _speed_change(search, request)
    if request.n_parallel is not None and request.n_parallel > 1:
        n, choice = _largest(search, request.n_parallel - 1, lambda n: replace(request, n_parallel=n))
        if choice is not None:
            yield Change(what="slots", value=str(n), choice=choice, asked=True)
    for kv in _CACHES:
        choice = search.best(replace(request, kv_types=(kv,))) if kv not in request.kv_types else None
        if choice is not None:
            yield Change(what="cache", value=kv[0], choice=choice, asked=request.kv_types != PlanRequest().kv_types)
            break
    yield from _shorter(search, request)
    yield from _smaller(search, request)
    yield from _limits(search, request)


def _shorter(search: Search, request: PlanRequest) -> Iterator[Change]:
    least = least_context(request, search.tools.n_ctx_train)
    most = (least - 1) // _CONTEXT_STEP
    n, choice = _largest(search, most, lambda n: replace(request, n_ctx=n * _CONTEXT_STEP, n_ctx_min=None))
    if choice is not None:
        asked = bool(request.n_ctx or request.n_ctx_min)
        yield Change(what="context", value=str(n * _CONTEXT_STEP), choice=choice, asked=asked)


def _smaller(search: Search, request: PlanRequest) -> Iterator[Change]:
    """Other presets, the most faithful first, where the request had not all of them."""
    for quant in PRESETS:
        if quant in request.quants or search.tools.own is not None:
            continue
        choice = search.best(replace(request, quants=(quant,)))
        if choice is not None:
            yield Change(what="presets", value=quant, choice=choice, asked=True)
            return


def _limits(search: Search, request: PlanRequest) -> Iterator[Change]:
    if request.devices is not None:
        choice = search.best(replace(request, devices=None))
        if choice is not None:
            yield Change(what="devices", value="all", choice=choice, asked=True)
    if request.cache_ram_bytes:
        choice = search.best(replace(request, cache_ram_bytes=0))
        if choice is not None:
            yield Change(what="prompt cache", value="0", choice=choice, asked=True)
    if request.max_ram_bytes is not None:
        choice = search.best(replace(request, max_ram_bytes=None))
        if choice is not None:
            need = next(n.total_bytes for n in choice.needs if n.name == HOST)
            yield Change(what="ram", value=str(-(-need // MIB)), choice=choice, asked=True)
    disk = search.tools.free_disk_bytes
    if request.max_disk_bytes is None and disk is not None:
        roomy = Search(replace(search.tools, free_disk_bytes=None)).best(request)
        if roomy is not None:
            need = search.tools.outline_of(roomy.setting.quant).file_bytes
            yield Change(what="disk", value=str(-(-need // MIB)), choice=roomy, asked=False)
    if request.max_disk_bytes is not None:
        choice = search.best(replace(request, max_disk_bytes=None))
        if choice is not None:
            need = search.tools.outline_of(choice.setting.quant).file_bytes
            yield Change(what="disk", value=str(-(-need // MIB)), choice=choice, asked=True)


def _largest(search: Search, most: int, request_for: Callable[[int], PlanRequest]) -> tuple[int, Choice | None]:
    """The largest number from 1 that has a plan, where less always has one when more does."""
    low, found = 0, None
    high = most
    while low < high:
        middle = (low + high + 1) // 2
        choice = search.best(request_for(middle))
        if choice is None:
            high = middle - 1
        else:
            low, found = middle, choice
    return low, found


def _named(change: Change, request: PlanRequest) -> str:
    """The constraint as it was asked for."""
    asked: dict[str, object] = {
        "speed": f"at least {request.min_tokens_per_s:g} tokens/s" if request.min_tokens_per_s else "",
        "slots": f"{request.n_parallel} slots",
        "cache": f"a cache of {' or '.join(k for k, _ in request.kv_types)}",
        "context": f"a context of {(request.n_ctx or request.n_ctx_min or 0):,} tokens",
        "presets": f"the presets {', '.join(request.quants)}",
        "devices": f"the devices {', '.join(request.devices or ()) or 'CPU alone'}",
        "prompt cache": f"a prompt cache of {(request.cache_ram_bytes or 0) // MIB:,} MiB",
        "ram": f"at most {(request.max_ram_bytes or 0) // MIB:,} MiB of RAM",
        "disk": f"at most {(request.max_disk_bytes or 0) // MIB:,} MiB of disk",
    }
    return str(asked[change.what])


def _smallest(search: Search, request: PlanRequest) -> tuple[int, int, str, str]:
    """What the smallest candidate lacks: (bytes needed, bytes there are, where, in words)."""
    tools = search.tools
    quant = min(request.quants, key=lambda name: tools.outline_of(name).file_bytes)
    kv = request.kv_types[-1]
    setting = Setting(
        quant=quant, n_ctx=least_context(request, tools.n_ctx_train), n_parallel=request.n_parallel or 1,
        type_k=kv[0], type_v=kv[1], n_ubatch=min(request.n_ubatches),
    )  # fmt: skip
    capacities = capacities_for(request, tools)
    everywhere: Sequence[str] = () if request.devices == () else request.devices or tools.gpus
    gpu = sum(max(0, capacities[name].usable_bytes - capacities[name].taken_bytes) for name in everywhere
              if not capacities[name].unified)  # fmt: skip
    host = capacities[HOST].usable_bytes
    frame = frame_of(tools.outline_of(quant), tools.context_of(setting))
    need = max(frame.on_host(frame.outline.n_items, 0), sum(n.total_bytes for n in tools.memory_of(setting)))
    where = f"{HOST} and the GPUs together" if gpu else HOST
    return need, host + gpu, where, f"the smallest candidate ({describe(setting, tools.n_layer)})"
