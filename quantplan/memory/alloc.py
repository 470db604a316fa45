"""The graph allocator: ggml/src/ggml-alloc.c of llama.cpp 0c1e570, in sizes only.

What is allocated, reused in place and freed, and when, depends on the graph alone: `events` lists it once. Where it
lands depends on the sizes: `peak_bytes` plays the list through the engine's best-fit allocator.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.memory.graph import INPLACE, Tensor
from quantplan.memory.sched import Scheduled

# An event: (buffer, slot, shrink_from): a slot is allocated (slot >= 0) or freed (~slot); with shrink_from >= 0 it
# takes over that slot's memory, in place.
Event = tuple[int, int, int]


class _Events:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.slots: list[Tensor] = []
        self.slot_of: dict[int, int] = {}
        self.buffer_of: dict[int, int] = {}
        self.owned: set[int] = set()
        self.n_children: dict[int, int] = {}
        self.n_views: dict[int, int] = {}

    def allocate(self, tensor: Tensor, buffer: int) -> None:
        key = id(tensor)
        if tensor.view_src is not None or tensor.buffer >= 0 or key in self.owned:
            return
        self.owned.add(key)
        slot = self.slot_of[key] = len(self.slots)
        self.slots.append(tensor)
        parent = self._inplace_parent(tensor) if tensor.op in INPLACE else None
        if parent is not None:
            self.owned.discard(id(parent))
            self.buffer_of[key] = self.buffer_of[id(parent)]
            self.events.append((self.buffer_of[key], slot, self.slot_of[id(parent)]))
            return
        self.buffer_of[key] = buffer
        self.events.append((buffer, slot, -1))

    def _inplace_parent(self, tensor: Tensor) -> Tensor | None:
        for parent in tensor.srcs:
            key = id(parent)
            if (
                key in self.owned
                and not parent.is_output
                and parent.ne == tensor.ne
                and parent.nbytes == tensor.nbytes
                and self.n_children[key] == 1
                and self.n_views.get(key, 0) == 0
            ):
                return parent
        return None

    def free(self, tensor: Tensor) -> None:
        if tensor.is_output:
            return
        key = id(tensor)
        self.owned.discard(key)
        self.events.append((self.buffer_of[key], ~self.slot_of[key], -1))


def events(scheduled: Scheduled) -> tuple[list[Event], list[Tensor]]:
    """What the allocator does, in order, and the tensor of each slot (ggml_gallocr_alloc_graph_impl)."""
    state = _Events()
    children, views = state.n_children, state.n_views
    for leaf, buffer in scheduled.leafs:
        state.allocate(leaf, buffer)
    for node, buffer in scheduled.nodes:
        if node.view_src is not None and node.op != "NONE":
            views[id(node.view_src)] = views.get(id(node.view_src), 0) + 1
        for src in node.srcs:
            children[id(src)] = children.get(id(src), 0) + 1
            if src.is_input:
                state.allocate(src, buffer)
    for node, buffer in scheduled.nodes:
        for src in node.srcs:
            state.allocate(src, buffer)
        state.allocate(node, buffer)
        for src in node.srcs:
            _release(state, src)
    return state.events, state.slots


def _release(state: _Events, src: Tensor) -> None:
    children, views = state.n_children, state.n_views
    key = id(src)
    children[key] -= 1
    if children[key] != 0 or views.get(key, 0) != 0:
        return
    root = src.view_src
    if root is None:
        if key in state.owned:
            state.free(src)
        return
    views[id(root)] = views.get(id(root), 0) - 1
    if views[id(root)] == 0 and children.get(id(root), 0) == 0 and id(root) in state.owned:
        state.free(root)


def peak_bytes(what: Sequence[Event], sizes: Sequence[int], n_buffers: int) -> list[int]:
    """Bytes each buffer grows to. `sizes` are the slots' bytes, padded to the buffers' alignment."""
    # One list of free blocks a buffer: [offset, size], by offset; the last one is the open end.
    free: list[list[list[int]]] = [[[0, 1 << 62]] for _ in range(n_buffers)]
    offsets = [0] * len(sizes)
    peak = [0] * n_buffers
    for buffer, slot, parent in what:
        blocks = free[buffer]
        if slot < 0:
            _give_back(blocks, offsets[~slot], sizes[~slot])
        elif parent >= 0:
            offsets[slot] = offsets[parent]
            if sizes[parent] > sizes[slot]:
                _give_back(blocks, offsets[slot] + sizes[slot], sizes[parent] - sizes[slot])
        else:
            size = sizes[slot]
            best = -1
            best_size = 1 << 62
            for index in range(len(blocks) - 1):
                have = blocks[index][1]
                if size <= have <= best_size:
                    best, best_size = index, have
            block = blocks[best]
            offset = offsets[slot] = block[0]
            block[0] = offset + size
            block[1] -= size
            if block[1] == 0:
                del blocks[best]
            peak[buffer] = max(peak[buffer], offset + size)
    return peak


def _give_back(blocks: list[list[int]], offset: int, size: int) -> None:
    """Frees a range: merged with the block before or after it, else a block of its own.

    Only one neighbour is looked for first, so that an empty block keeps two others apart, as in the engine.
    """
    end = offset + size
    for index, block in enumerate(blocks):
        if block[0] + block[1] == offset:
            block[1] += size
            if index + 1 < len(blocks) and end == blocks[index + 1][0]:
                block[1] += blocks[index + 1][1]
                del blocks[index + 1]
            return
        if block[0] == end:
            block[0], block[1] = offset, block[1] + size
            return
        if block[0] > end:
            blocks.insert(index, [offset, size])
            return
    blocks.append([offset, size])
