"""A model at a preset in few numbers: what each layer takes on a GPU and on the host. Exact weights and caches without
compute buffers, so a lower bound of what a placement needs; a lookup of prefix sums instead of a graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from quantplan.memory.estimate import LOGIT_BYTES, PreparedModel
from quantplan.memory.kv_cache import layer_bytes
from quantplan.memory.placement import EXPERTS_PATTERN, ContextParams
from quantplan.memory.weights import GPU_ALIGN, HOST_ALIGN
from quantplan.units import pad

_EXPERTS = re.compile(EXPERTS_PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Bytes before each of the n_layer + 1 items (the layers, then the head): `x[b] - x[a]` is what items a to b take.

    gpu_* are sizes in a GPU's buffer, host_* in the host's; dense is everything but the experts. `read` is what one
    token reads of them: all that is dense, the used share of the experts.
    """

    model: PreparedModel
    n_items: int
    gpu_dense: tuple[int, ...]
    gpu_expert: tuple[int, ...]
    host_dense: tuple[int, ...]
    host_expert: tuple[int, ...]
    host_base: int
    file_bytes: int

    @property
    def has_experts(self) -> bool:
        return self.gpu_expert[-1] > 0


def outline_of(model: PreparedModel) -> Outline:
    """The outline of a prepared model."""
    n_layer = model.facts.n_layer
    sums = [[0] * (n_layer + 2) for _ in range(4)]
    base = file_bytes = 0
    for part in model.parts:
        if not part.is_duplicate:
            file_bytes += pad(part.nbytes, HOST_ALIGN)
        on_host = 0 if part.is_duplicate else pad(part.nbytes, HOST_ALIGN)
        if part.layer is None:
            base += on_host
            continue
        which = 1 if _EXPERTS.search(part.name) else 0
        item = 1 + min(part.layer, n_layer)
        sums[which][item] += pad(part.nbytes + part.gpu_extra, GPU_ALIGN)
        sums[2 + which][item] += on_host
    dense, expert, host_dense, host_expert = (tuple(accumulate(each)) for each in sums)
    return Outline(
        model=model, n_items=n_layer + 1, gpu_dense=dense, gpu_expert=expert, host_dense=host_dense,
        host_expert=host_expert, host_base=base, file_bytes=file_bytes,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An outline at one context: caches added. What is left to choose is where the items go."""

    outline: Outline
    cache: tuple[int, ...]  # prefix sums, as the outline's
    output_bytes: int

    def on_gpu(self, first: int, end: int, n_cpu_moe: int) -> int:
        """Bytes of items first to end on a GPU, the experts of the first n_cpu_moe layers left out."""
        o, cache = self.outline, self.cache
        dense = o.gpu_dense[end] - o.gpu_dense[first] + cache[end] - cache[first]
        return dense + o.gpu_expert[max(end, n_cpu_moe)] - o.gpu_expert[max(first, n_cpu_moe)]

    def on_host(self, n_host: int, n_cpu_moe: int) -> int:
        """Bytes of the host: the first n_host items whole, experts of the first n_cpu_moe layers, embeddings."""
        o = self.outline
        return (o.host_base + o.host_dense[n_host] + o.host_expert[max(n_host, n_cpu_moe)] + self.cache[n_host]
                + self.output_bytes)  # fmt: skip

    def furthest(self, first: int, n_cpu_moe: int, room: int) -> int:
        """The end of the longest run of items from `first` that fits in `room` bytes of a GPU."""
        low, high = first, self.outline.n_items
        while low < high:
            middle = (low + high + 1) // 2
            if self.on_gpu(first, middle, n_cpu_moe) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def read_bytes(self, first: int, end: int, n_cpu_moe: int, share: float) -> float:
        """What a token reads of items on a GPU."""
        o = self.outline
        experts = o.gpu_expert[max(end, n_cpu_moe)] - o.gpu_expert[max(first, n_cpu_moe)]
        return o.gpu_dense[end] - o.gpu_dense[first] + self.cache[end] - self.cache[first] + share * experts


def frame_of(outline: Outline, ctx: ContextParams) -> Frame:
    """The outline with the caches of a context."""
    facts = outline.model.facts
    widest = max((layer.n_embd_head_v * layer.n_head_kv for layer in facts.layers), default=0)
    known: dict[object, int] = {}
    sizes = []
    for layer in facts.layers:
        n_bytes = known.get(layer)
        if n_bytes is None:
            n_bytes = known[layer] = layer_bytes(layer, ctx=ctx, n_swa=facts.n_swa, widest_v=widest, arch=facts.arch,
                                                 sizes=outline.model.kv_sizes)  # fmt: skip
        sizes.append(n_bytes)
    sizes = [*sizes[: facts.n_layer], *[0] * (facts.n_layer - len(sizes)), 0]
    return Frame(
        outline=outline, cache=tuple(accumulate(sizes, initial=0)),
        output_bytes=facts.n_vocab * LOGIT_BYTES * ctx.n_outputs,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where the items go: n_host items on the host, then `counts` on each GPU in order; the experts of the first
    n_cpu_moe layers on the host."""

    n_host: int
    counts: tuple[int, ...]
    n_cpu_moe: int


def fill(frame: Frame, n_host: int, n_cpu_moe: int, rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Counts by GPU when each in turn takes all it has room for; None where that leaves items over.

    Whenever any split in this order fits, this one does.
    """
    first, counts = n_host, []
    for room in rooms:
        end = frame.furthest(first, n_cpu_moe, room)
        counts.append(end - first)
        first = end
    return tuple(counts) if first == frame.outline.n_items else None


def even(frame: Frame, n_host: int, n_cpu_moe: int, rooms: Sequence[int]) -> tuple[int, ...] | None:
    """Counts that leave every GPU about the same share of its room; None where nothing fits."""
    best = fill(frame, n_host, n_cpu_moe, rooms)
    if best is None or len(rooms) < 2:
        return best
    low, high = 0, 256
    while low < high:
        middle = (low + high) // 2
        found = fill(frame, n_host, n_cpu_moe, [room * middle // 256 for room in rooms])
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    return best


def fastest(
    frame: Frame, n_host: int, n_cpu_moe: int, rooms: Sequence[int], *, pace: Sequence[float], share: float
) -> tuple[int, ...] | None:
    """Counts with the least time of reading, `pace` being each GPU's seconds a byte; None where nothing fits.

    Exact for that sum: the cheapest way to lay out the items from each on, over the GPUs from the last to the first.
    """
    n = frame.outline.n_items
    if fill(frame, n_host, n_cpu_moe, rooms) is None:
        return None
    later: list[tuple[float, tuple[int, ...]] | None] = [None] * n + [(0.0, ())]
    for gpu in reversed(range(len(rooms))):
        best: list[tuple[float, tuple[int, ...]] | None] = [None] * (n + 1)
        for first in range(n_host, n + 1) if gpu else (n_host,):
            for end in range(first, frame.furthest(first, n_cpu_moe, rooms[gpu]) + 1):
                rest = later[end]
                if rest is None:
                    continue
                cost = pace[gpu] * frame.read_bytes(first, end, n_cpu_moe, share) + rest[0]
                found = best[first]
                if found is None or cost < found[0] * (1 - 1e-12):
                    best[first] = (cost, (end - first, *rest[1]))
        later = best
    chosen = later[n_host]
    return chosen[1] if chosen else None
