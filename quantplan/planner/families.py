"""Where a model's layers may go, in families that each have one best member: more on the GPUs is faster and larger.

whole    every layer on the GPUs
experts  every layer on the GPUs, the experts of the first few on the host (`n_cpu_moe`)
layers   the first few layers wholly on the host; of a mixture of experts, the experts of all others too: what a GPU
         holds of dense weights is read for every token, what it holds of experts only now and then
idle     every layer on the host; the GPUs only help with long prompts, for which weights are copied to them
host     the CPU alone

Assumed: either every layer is faster on a GPU than on the CPU, or none is (then `idle` or `host` wins, with the room).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from quantplan.planner.outline import Frame, Spread, even, fastest, fill

_ALIKE = 1.01  # GPUs whose pace differs by less than this are loaded alike instead of the faster one first


class Family(Enum):
    WHOLE = "every layer on the GPU"
    EXPERTS = "experts of some layers on the host"
    LAYERS = "some layers on the host"
    IDLE = "every layer on the host"
    HOST = "everything on the CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Bytes for weights and caches: by GPU, and of the host. `shared` GPUs take theirs from the host's."""

    gpus: tuple[int, ...]
    host: int
    shared: tuple[bool, ...]


def families_of(n_gpus: int, *, has_experts: bool) -> tuple[Family, ...]:
    """The families of a set of GPUs."""
    if n_gpus == 0:
        return (Family.HOST,)
    partly = (Family.EXPERTS, Family.LAYERS) if has_experts else (Family.LAYERS,)
    return (Family.WHOLE, *partly, Family.IDLE)


def best_spread(family: Family, frame: Frame, rooms: Rooms, *, pace: Sequence[float], share: float) -> Spread | None:
    """The family's fastest member that fits in the rooms; None where none does."""
    n = frame.outline.n_items
    n_host, n_cpu_moe = 0, 0
    if family is Family.HOST:
        return _checked(Spread(n_host=n, counts=(), n_cpu_moe=0), frame, rooms)
    if family is Family.IDLE:
        free = all(room >= 0 for room in rooms.gpus)
        return _checked(Spread(n_host=n, counts=(0,) * len(rooms.gpus), n_cpu_moe=0), frame, rooms) if free else None
    if family is Family.EXPERTS:
        least = _least(1, n - 1, lambda k: fill(frame, 0, k, rooms.gpus) is not None)
        if least is None:
            return None
        n_cpu_moe = least
    elif family is Family.LAYERS:
        moe = n - 1 if frame.outline.has_experts else 0
        least = _least(1, n - 1, lambda a: fill(frame, a, moe, rooms.gpus) is not None)
        if least is None:
            return None
        n_host, n_cpu_moe = least, moe
    counts = _counts(frame, n_host, n_cpu_moe, rooms, pace, share)
    if counts is None:
        return None
    return _checked(Spread(n_host=n_host, counts=counts, n_cpu_moe=n_cpu_moe), frame, rooms)


def _counts(
    frame: Frame, n_host: int, n_cpu_moe: int, rooms: Rooms, pace: Sequence[float], share: float
) -> tuple[int, ...] | None:
    if len(rooms.gpus) < 2 or max(pace) <= min(pace) * _ALIKE:
        return even(frame, n_host, n_cpu_moe, rooms.gpus)
    return fastest(frame, n_host, n_cpu_moe, rooms.gpus, pace=pace, share=share)


def _checked(spread: Spread, frame: Frame, rooms: Rooms) -> Spread | None:
    """The spread, if the host has room for its part and for what GPUs share with it."""
    need = frame.on_host(spread.n_host, spread.n_cpu_moe)
    first = spread.n_host
    for count, shared in zip(spread.counts, rooms.shared, strict=False):
        need += frame.on_gpu(first, first + count, spread.n_cpu_moe) if shared else 0
        first += count
    return spread if need <= rooms.host else None


def _least(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The least number that works, where all above one that works do too."""
    if low > high or not works(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle + 1
    return low
