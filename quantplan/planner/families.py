"""Where a model's layers may go, in families that each have one best member: more on the GPUs is faster and larger.

whole    every layer on the GPUs
experts  every layer on the GPUs, the experts of the first few on the host (`n_cpu_moe`)
layers   the first few layers wholly on the host; of a mixture of experts, the experts of all others too: what a GPU
         holds of dense weights is read for every token, what it holds of experts only now and then
plain    the first few layers wholly on the host, the others wholly on the GPUs, their experts too: fewer changes
         between devices, which is what counts in small models
idle     every layer on the host; the GPUs only help with long prompts, for which weights are copied to them
host     the CPU alone

Where a family's best member is hardly faster than having everything on the host, a GPU is no faster than the CPU for
some layers; then every member is looked at (`members`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from quantplan.planner.outline import Frame, Spread, even, fastest, fill

_ALIKE = 1.01  # GPUs whose pace differs by less than this are loaded alike instead of the faster one first


class Family(Enum):
    WHOLE = "every layer on the GPU"
    EXPERTS = "experts of some layers on the host"
    LAYERS = "some layers on the host"
    PLAIN = "some layers on the host, experts with their layers"
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
    partly = (Family.EXPERTS, Family.LAYERS, Family.PLAIN) if has_experts else (Family.LAYERS,)
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
    elif family in (Family.LAYERS, Family.PLAIN):
        moe = n - 1 if frame.outline.has_experts and family is Family.LAYERS else 0
        least = _least(1, n - 1, lambda a: fill(frame, a, moe, rooms.gpus) is not None)
        if least is None:
            return None
        n_host, n_cpu_moe = least, moe
    counts = _counts(frame, n_host, n_cpu_moe, rooms, pace, share)
    if counts is None:
        return None
    return _checked(Spread(n_host=n_host, counts=counts, n_cpu_moe=n_cpu_moe), frame, rooms)


def members(
    family: Family, best: Spread, frame: Frame, rooms: Rooms, *, pace: Sequence[float], share: float
) -> Iterator[Spread]:
    """The family's other members, with less on the GPUs."""
    n = frame.outline.n_items
    if family is Family.EXPERTS:
        pairs = [(0, n_cpu_moe) for n_cpu_moe in range(best.n_cpu_moe + 1, n)]
    elif family in (Family.LAYERS, Family.PLAIN):
        pairs = [(n_host, best.n_cpu_moe) for n_host in range(best.n_host + 1, n)]
    else:
        return
    for n_host, n_cpu_moe in pairs:
        counts = _counts(frame, n_host, n_cpu_moe, rooms, pace, share)
        if counts is not None:
            found = _checked(Spread(n_host=n_host, counts=counts, n_cpu_moe=n_cpu_moe), frame, rooms)
            if found is not None:
                yield found


def mixed(n_host: int, frame: Frame, rooms: Rooms, *, pace: Sequence[float], share: float) -> Spread | None:
    """Some layers wholly on the host, and the experts of as few of the others as will do."""
    n = frame.outline.n_items
    least = _least(n_host, n - 1, lambda k: fill(frame, n_host, k, rooms.gpus) is not None)
    if least is None:
        return None
    counts = _counts(frame, n_host, least, rooms, pace, share)
    return _checked(Spread(n_host=n_host, counts=counts, n_cpu_moe=least), frame, rooms) if counts else None


def splits(spread: Spread, frame: Frame, rooms: Rooms) -> Iterator[Spread]:
    """Other ways to lay the same items over several GPUs: evenly, and all on one of them."""
    n_items, n_gpus = sum(spread.counts), len(spread.counts)
    if n_gpus < 2 or not n_items:
        return
    one_hot = (tuple(n_items if i == gpu else 0 for i in range(n_gpus)) for gpu in range(n_gpus))
    for counts in dict.fromkeys((even(frame, spread.n_host, spread.n_cpu_moe, rooms.gpus), *one_hot)):
        if counts is not None and counts != spread.counts:
            found = Spread(n_host=spread.n_host, counts=counts, n_cpu_moe=spread.n_cpu_moe)
            if still_fits(found, frame, rooms):
                yield found


def still_fits(spread: Spread, frame: Frame, rooms: Rooms) -> Spread | None:
    """The very spread, if it fits in these rooms."""
    first = spread.n_host
    for count, room in zip(spread.counts, rooms.gpus, strict=True):
        if frame.on_gpu(first, first + count, spread.n_cpu_moe) > room:
            return None
        first += count
    return _checked(spread, frame, rooms)


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
