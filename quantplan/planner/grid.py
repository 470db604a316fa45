"""What the planner would say for every preset, cache type, number of slots and context of a few: a page's sliders.

Each cell is what `recommend` answers when told exactly that, with the plan's micro-batch. Where nothing fits, the cell
is what would be planned if the host had memory without end: it says what is lacking and where the layers would go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from quantplan.artifact.plan_file import Figure, Quality
from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.planner.candidates import Choice, capacities_for, too_large_for_disk
from quantplan.planner.instruments import Instruments, shortage
from quantplan.planner.plan import cache_ram
from quantplan.planner.request import USUAL_N_CTX, Capacity, PlanRequest, Setting
from quantplan.planner.search import Search

SLOTS = (1, 2, 4, 8)
MORE_CACHES = (("q4_0", "q4_0"),)  # beside those that the plan could choose from
_FIRST_N_CTX, _STEP, _FREE_CONTEXTS = 2048, 256, 4
_ENDLESS = 1 << 60  # bytes of RAM: more than any plan asks for

Lack = Literal["memory", "disk", "speed"]
Speeds = Callable[[Setting], tuple[Figure | None, Figure | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One preset of the grid: the bytes of its file, its expected damage, and what speaks against it."""

    quant: str
    file_bytes: int
    quality: Quality | None
    objection: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The plan of one position. `lacks` is what it would take more of, None where it fits. Speeds are with every
    slot's context full, None where memory lacks; `total_per_s` is of all slots together, 0 where unknown."""

    setting: Setting
    needs: tuple[DeviceMemory, ...]
    lacks: Lack | None
    decode: Figure | None
    prefill: Figure | None
    total_per_s: float
    cache_ram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The values of the four sliders."""

    quants: tuple[str, ...]
    kv_types: tuple[tuple[str, str], ...]
    n_parallels: tuple[int, ...]
    contexts: tuple[int, ...]

    def positions(self) -> Iterator[tuple[str, tuple[str, str], int, int]]:
        """Preset, cache, slots and context, the last one fastest."""
        return product(self.quants, self.kv_types, self.n_parallels, self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells in the order of `axes.positions()`, None where no placement exists even with endless memory.

    `plan_at` are the plan's own indices. At its preset, cache and slots, `whole_n_ctx` is the longest context with
    every layer on the GPUs and `fits_n_ctx` the longest that fits at all, in steps of 256; None where the longest of
    the axis is no limit, 0 where not even the shortest is.
    """

    axes: Axes
    presets: tuple[Preset, ...]
    capacities: tuple[Capacity, ...]
    cells: tuple[Cell | None, ...]
    plan_at: tuple[int, int, int, int]
    n_layer: int
    whole_n_ctx: int | None
    fits_n_ctx: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """What a grid is worked out with. `suited` makes a request one that this kind of model can be asked."""

    tools: Instruments
    request: PlanRequest
    best: Choice
    speeds: Speeds
    quality_of: Callable[[str], Quality | None]
    suited: Callable[[PlanRequest], PlanRequest] = lambda request: request


def axes_of(explorer: Explorer, *, quants: tuple[str, ...], kv_types: tuple[tuple[str, str], ...]) -> Axes:
    """The sliders' values: contexts double up to the trained one; the plan's own values are among them."""
    at = explorer.best.setting
    own = (at.type_k, at.type_v)
    return Axes(
        quants=quants if at.quant in quants else (at.quant, *quants),
        kv_types=kv_types if own in kv_types else (own, *kv_types),
        n_parallels=tuple(sorted({*SLOTS, at.n_parallel})),
        contexts=_contexts(explorer),
    )


def _contexts(explorer: Explorer) -> tuple[int, ...]:
    trained, own = explorer.tools.n_ctx_train, explorer.best.setting.n_ctx
    most = max(trained or _FREE_CONTEXTS * USUAL_N_CTX, own)
    found, n_ctx = {own, most}, min(_FIRST_N_CTX, max(_STEP, most // 4))
    while n_ctx < most:
        found.add(n_ctx)
        n_ctx *= 2
    return tuple(sorted(found))


def grid_of(explorer: Explorer, axes: Axes) -> Grid:
    """All cells. The plan's own position is the plan."""
    at = explorer.best.setting
    own = (at.quant, (at.type_k, at.type_v), at.n_parallel, at.n_ctx)
    search = Search(explorer.tools)
    roomy = Search(_with_endless_ram(explorer.tools))
    cells = []
    for position in axes.positions():
        asked = _asked(explorer, position)
        choice = explorer.best if position == own else _alone(search).best(asked)
        cells.append(_cell(explorer, asked, choice, roomy))
    whole, fits = _limits(explorer, axes, search)
    return Grid(
        axes=axes, presets=tuple(_preset(explorer, quant) for quant in axes.quants),
        capacities=tuple(capacities_for(explorer.request, explorer.tools).values()), cells=tuple(cells),
        plan_at=(axes.quants.index(at.quant), axes.kv_types.index(own[1]), axes.n_parallels.index(at.n_parallel),
                 axes.contexts.index(at.n_ctx)),
        n_layer=explorer.tools.n_layer, whole_n_ctx=whole, fits_n_ctx=fits,
    )  # fmt: skip


def _alone(search: Search) -> Search:
    """A search that learned nothing yet of what does not fit, as the command's own: only what it worked out is kept."""
    return Search(search.tools, frames=search.frames, paces=search.paces, speeds=search.speeds)


def _asked(explorer: Explorer, position: tuple[str, tuple[str, str], int, int]) -> PlanRequest:
    quant, kv, n_parallel, n_ctx = position
    return explorer.suited(replace(
        explorer.request, quants=(quant,), kv_types=(kv,), n_parallel=n_parallel, n_ctx=n_ctx, n_ctx_min=None,
        any_preset=True, n_ubatches=(explorer.best.setting.n_ubatch,),
    ))  # fmt: skip


def _preset(explorer: Explorer, quant: str) -> Preset:
    tools = explorer.tools
    return Preset(quant=quant, file_bytes=tools.outline_of(quant).file_bytes, quality=explorer.quality_of(quant),
                  objection=tools.objection(quant))  # fmt: skip


def _with_endless_ram(tools: Instruments) -> Instruments:
    """The same model on a host with more RAM and disk than anything takes; its GPUs are as they are."""
    endless = tuple(replace(one, free_bytes=_ENDLESS) if one.name == HOST else one for one in tools.capacities)
    return replace(tools, capacities=endless, free_disk_bytes=None)


def _cell(explorer: Explorer, asked: PlanRequest, choice: Choice | None, roomy: Search) -> Cell | None:
    lacks: Lack | None = None
    if choice is None:
        free = replace(asked, min_tokens_per_s=None, max_ram_bytes=None, max_disk_bytes=None)
        choice = roomy.best(free)
        if choice is None:
            return None
        lacks = _lack(explorer.tools, asked, choice)
    setting, tools = choice.setting, explorer.tools
    exists = lacks != "memory"  # nobody will run what has no room: no speed is told of it
    decode, prefill = explorer.speeds(setting) if exists else (None, None)
    return Cell(
        setting=setting, needs=choice.needs, lacks=lacks, decode=decode, prefill=prefill,
        total_per_s=tools.speed_of(setting, setting.n_ctx, setting.n_parallel)[0] if exists else 0.0,
        cache_ram_bytes=cache_ram(asked, choice.needs, capacities_for(asked, tools)),
    )  # fmt: skip


def _lack(tools: Instruments, asked: PlanRequest, choice: Choice) -> Lack:
    """What the planner missed where it found nothing, though this would be its choice with endless memory."""
    if shortage(choice.needs, capacities_for(asked, tools)) is not None:
        return "memory"
    if too_large_for_disk(asked, tools, choice.setting.quant) is not None:
        return "disk"
    return "speed"


# ---- how far the context reaches


def _limits(explorer: Explorer, axes: Axes, search: Search) -> tuple[int | None, int | None]:
    """(longest context with every layer on the GPUs, longest that fits), at the plan's preset, cache and slots."""
    at = explorer.best.setting
    known: dict[int, Choice | None] = {at.n_ctx: explorer.best}

    def choice(n_ctx: int) -> Choice | None:
        if n_ctx not in known:
            position = (at.quant, (at.type_k, at.type_v), at.n_parallel, n_ctx)
            known[n_ctx] = _alone(search).best(_asked(explorer, position))
        return known[n_ctx]

    def whole(n_ctx: int) -> bool:
        found = choice(n_ctx)
        return found is not None and is_whole(found.setting, explorer.tools.n_layer)

    fits = _longest(axes.contexts, lambda n_ctx: choice(n_ctx) is not None)
    return _longest(axes.contexts, whole) if explorer.tools.gpus else None, fits


def is_whole(setting: Setting, n_layer: int) -> bool:
    """Whether every layer is wholly on the GPUs."""
    return bool(setting.devices) and setting.n_gpu_layers > n_layer and setting.n_cpu_moe == 0


def _longest(contexts: tuple[int, ...], works: Callable[[int], bool]) -> int | None:
    """The longest that works, in steps, where all shorter ones do; None if the last one does, 0 if the first fails."""
    if works(contexts[-1]):
        return None
    good = next((n for n in reversed(contexts) if works(n)), 0)
    if not good:
        return 0
    low, high = good, next(n for n in contexts if n > good)
    while high - low > _STEP:
        middle = (low + high) // 2 // _STEP * _STEP
        if middle <= low:
            break
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
