"""Does it fit, and which single change would make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quantplan.memory.estimate import MemoryEstimate
from quantplan.memory.placement import ContextParams, Placement

MemoryOf = Callable[[ContextParams, Placement], MemoryEstimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRoom:
    """A device's size and what of it is free. None where unknown."""

    name: str
    product: str
    capacity_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that makes it fit."""

    what: str  # n_ctx | n_gpu_layers | cache type
    value: str


def fits_in(memory: MemoryEstimate, rooms: Sequence[DeviceRoom]) -> bool:
    """Whether every device whose free memory is known has room."""
    return all(room.free_bytes is None or memory.device(room.name).total_bytes <= room.free_bytes for room in rooms)


def remedies_for(
    n_layer: int, ctx: ContextParams, placement: Placement, rooms: Sequence[DeviceRoom], memory_of: MemoryOf
) -> tuple[Remedy, ...]:
    """The largest context, the most layers and the first cache type with which it fits, each alone."""

    def works(one: ContextParams, where: Placement) -> bool:
        return fits_in(memory_of(one, where), rooms)

    found: list[Remedy] = []
    n_ctx = _largest(256, ctx.n_ctx - 1, 256, lambda n: works(replace(ctx, n_ctx=n), placement))
    if n_ctx is not None:
        found.append(Remedy(what="n_ctx", value=str(n_ctx)))
    if placement.devices:
        most = n_layer if placement.n_gpu_layers is None else placement.n_gpu_layers - 1
        layers = _largest(0, most, 1, lambda n: works(ctx, replace(placement, n_gpu_layers=n)))
        if layers is not None:
            found.append(Remedy(what="n_gpu_layers", value=str(layers)))
    for kind in ("Q8_0", "Q4_0") if ctx.flash_attn else ():
        if works(replace(ctx, type_k=kind, type_v=kind), placement):
            found.append(Remedy(what="cache type", value=kind.lower()))
            break
    return tuple(found)


def _largest(low: int, high: int, step: int, works: Callable[[int], bool]) -> int | None:
    """The largest multiple of `step` in [low, high] that works, where less always works when more does."""
    first, last = -(-low // step), high // step
    if last < first or not works(first * step):
        return None
    while first < last:
        middle = (first + last + 1) // 2
        if works(middle * step):
            first = middle
        else:
            last = middle - 1
    return first * step
