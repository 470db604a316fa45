"""Candidates of the search: alone, in groups, chosen, rejected; and in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantplan.errors import BadValue
from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.planner.families import Family
from quantplan.planner.instruments import Instruments
from quantplan.planner.outline import Frame, Spread
from quantplan.planner.request import Capacity, PlanRequest, Setting
from quantplan.planner.score import Key, Merits
from quantplan.units import format_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A candidate that fits, its memory, what it gives, and why it was taken."""

    setting: Setting
    needs: tuple[DeviceMemory, ...]
    merits: Merits
    key: Key
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A candidate that was not taken, and why."""

    what: str
    why: str


@dataclass(slots=True, kw_only=True)
class Effort:
    """How much was looked at."""

    n_raw: int = 0
    n_bounds: int = 0
    n_exact: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Candidates that agree in what is decided: the axes before `level`. Others are at their most hopeful value."""

    level: int
    quant: str
    kv: tuple[str, str]
    n_parallel: int
    devices: tuple[str, ...] = ()
    family: Family = Family.WHOLE
    n_ubatch: int = 0
    n_ctx: int = 0
    spread: Spread | None = None
    pinned: bool = False  # this very spread, not the family's best


def check(request: PlanRequest) -> None:
    """Raises BadValue for a request that nothing could meet, naming the two that contradict each other."""
    for what, value in (("context", request.n_ctx), ("least context", request.n_ctx_min)):
        if value is not None and value < 1:
            raise BadValue(what=what, value=value, why="is not a number of tokens above 0")
    if request.n_parallel is not None and request.n_parallel < 1:
        raise BadValue(what="slots", value=request.n_parallel, why="is not a number above 0")
    if not request.quants:
        raise BadValue(what="presets", value=None, why="leave nothing to choose from")
    if request.n_ctx and request.n_ctx_min and request.n_ctx_min > request.n_ctx:
        why = f"contradicts the context of {request.n_ctx:,}: it is more"
        raise BadValue(what="least context", value=request.n_ctx_min, why=why)


def capacities_for(request: PlanRequest, tools: Instruments) -> dict[str, Capacity]:
    """Devices by name, the host within the request's limit and without the prompt cache that was asked for."""
    found = {capacity.name: capacity for capacity in tools.capacities}
    host = found[HOST]
    over = max(0, host.usable_bytes - request.max_ram_bytes) if request.max_ram_bytes is not None else 0
    found[HOST] = replace(host, margin_bytes=host.margin_bytes + over + (request.cache_ram_bytes or 0))
    return found


def too_large_for_disk(request: PlanRequest, tools: Instruments, quant: str) -> Rejected | None:
    """Why the file itself has no room on the disk, or None."""
    rooms = [n for n in (request.max_disk_bytes, tools.free_disk_bytes) if n is not None]
    if not rooms:
        return None
    need = tools.outline_of(quant).file_bytes
    if need <= min(rooms):
        return None
    why = f"its file takes {format_mib(need)} of disk, {format_mib(min(rooms))} may be used"
    return Rejected(what=quant, why=why)


def not_whole(request: PlanRequest, tools: Instruments, group: Group, frame: Frame) -> Rejected:
    """Why a preset is not wholly on the GPUs, by weights and caches alone."""
    capacities = capacities_for(request, tools)
    need = frame.on_gpu(0, frame.outline.n_items, 0) + sum(capacities[name].taken_bytes for name in group.devices)
    have = sum(capacities[name].usable_bytes for name in group.devices)
    where = group.devices[0] if len(group.devices) == 1 else "the GPUs"
    why = f"weights and cache alone take {format_mib(need)} of {where}, {format_mib(have)} may be used"
    whole = replace(setting_of(group), n_gpu_layers=tools.n_layer + 1)
    return Rejected(what=describe(whole, tools.n_layer), why=why)


def describe(setting: Setting, n_layer: int) -> str:
    """A candidate in words."""
    cache = "" if setting.type_k == setting.type_v == "f16" else f", cache {setting.type_k}/{setting.type_v}"
    slots = "" if setting.n_parallel == 1 else f" × {setting.n_parallel} slots"
    if not setting.devices:
        where = "on the CPU"
    elif setting.n_gpu_layers > n_layer:
        where = f"with all {n_layer + 1} layers on {'+'.join(setting.devices)}"
    else:
        where = f"with {setting.n_gpu_layers} of {n_layer + 1} layers on {'+'.join(setting.devices)}"
    moe = f", experts of {setting.n_cpu_moe} layers on the host" if setting.n_cpu_moe else ""
    return f"{setting.quant} at {setting.n_ctx:,} tokens{slots} {where}{moe}{cache}"


def family_key(group: Group) -> object:
    """What shares the size of its compute buffers: a family; of single members those with as many host layers."""
    pinned = group.spread.n_host if group.pinned and group.spread else -1
    return (group.quant, group.kv, group.n_parallel, group.n_ubatch, group.devices, group.family, pinned)


def setting_of(group: Group) -> Setting:
    spread = group.spread
    n_gpu_layers = sum(spread.counts) if spread else 0
    return Setting(
        quant=group.quant, n_ctx=group.n_ctx, n_parallel=group.n_parallel, type_k=group.kv[0], type_v=group.kv[1],
        n_ubatch=group.n_ubatch, devices=group.devices, n_gpu_layers=n_gpu_layers,
        tensor_split=spread.counts if spread and n_gpu_layers and len(group.devices) > 1 else (),
        n_cpu_moe=spread.n_cpu_moe if spread else 0,
    )  # fmt: skip
