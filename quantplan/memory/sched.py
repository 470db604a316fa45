"""Which backend runs what, and what must be copied between them: ggml_backend_sched_split_graph.

ggml/src/ggml-backend.cpp of llama.cpp 0c1e570. Backends are numbered by priority: the GPUs first, the CPU last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantplan.memory.graph import VIEWS, Graph, Tensor

# ggml/src/ggml-cuda/ggml-cuda.cu, op_offload_min_batch_size: from here on, host weights are copied to the GPU.
OFFLOAD_MIN_BATCH = 32
MAX_SRC = 10  # ggml/include/ggml.h, GGML_MAX_SRC
N_COPIES = 4  # ggml/src/CMakeLists.txt, GGML_SCHED_MAX_COPIES: input copies under pipeline parallelism


@dataclass(slots=True)
class Scheduled:
    """The graph with its copies: each node with the backend that allocates it, and the leaves likewise."""

    nodes: list[tuple[Tensor, int]]
    leafs: list[tuple[Tensor, int]]
    n_splits: int


Supports = Callable[[int, Tensor], bool]


class _Scheduler:
    def __init__(self, graph: Graph, n_backends: int, supports: Supports, *, op_offload: bool, n_copies: int) -> None:
        self.graph, self.cpu, self.supports, self.op_offload = graph, n_backends - 1, supports, op_offload
        self.n_copies = n_copies
        self.backend: dict[int, int] = {}
        self.copies: dict[tuple[int, int], list[Tensor]] = {}

    def _of(self, tensor: Tensor) -> int:
        return self.backend.get(id(tensor), tensor.backend)

    def _from_current(self, tensor: Tensor) -> int:
        """Pass 1: where a tensor lies, or where the first of its weights lies."""
        root = tensor.view_src or tensor
        if root.buffer >= 0:
            return root.buffer if self.supports(root.buffer, tensor) else self.cpu
        if tensor.is_input:
            return self.cpu
        if tensor.op in ("ROPE", "FLASH_ATTN_EXT"):
            return -1
        for src in tensor.srcs:
            if src.buffer >= 0 and src.is_weight:
                if self.op_offload and src.buffer == self.cpu and self.cpu > 0 and self._offloads(tensor):
                    return 0
                return src.buffer if self.supports(src.buffer, tensor) else self.cpu
        return -1

    def _offloads(self, op: Tensor) -> bool:
        """ggml_backend_cuda_device_offload_op: large batches are worth copying the weight."""
        if op.op == "GET_ROWS":
            return False
        ne = (*op.ne, 1, 1, 1)
        if op.op == "MUL_MAT":
            batch = ne[1]
        elif op.op in ("MUL_MAT_ID", "ROPE"):
            batch = ne[2]
        else:
            batch = ne[1] * ne[2] * ne[3]
        return batch >= OFFLOAD_MIN_BATCH and self.supports(0, op)

    def assign(self) -> None:
        """Passes 1 to 4."""
        for tensor in (*self.graph.leafs, *self.graph.nodes):
            if self._of(tensor) < 0:
                self.backend[id(tensor)] = self._from_current(tensor)
            else:
                self.backend[id(tensor)] = self._of(tensor)
        real = [node for node in self.graph.nodes if node.op not in VIEWS]
        for nodes, with_cpu in ((real, False), (real[::-1], False), (real, True), (real[::-1], True)):
            self._expand(nodes, with_cpu=with_cpu)
        for node in real:
            if self.backend[id(node)] < 0:
                self.backend[id(node)] = self._most_supported(node)
        for node in self.graph.nodes:
            self._assign_sources(node)

    def _expand(self, nodes: list[Tensor], *, with_cpu: bool) -> None:
        """Pass 2: neighbours follow, the GPU's first."""
        backend, current = self.backend, -1
        for node in nodes:
            own = backend[id(node)]
            if own >= 0:
                current = own if with_cpu or own != self.cpu else -1
            elif current >= 0 and self.supports(current, node):
                backend[id(node)] = current

    def _most_supported(self, node: Tensor) -> int:
        """Pass 3: the backend that can read most of the sources where they lie."""
        best, best_count = self.cpu, -1
        for b in range(self.cpu + 1):
            if self.supports(b, node):
                count = sum(1 for src in node.srcs if self._where(src) == b)
                if count > best_count:
                    best, best_count = b, count
        return best

    def _where(self, tensor: Tensor) -> int:
        root = tensor.view_src or tensor
        if root.buffer >= 0:
            return root.buffer
        own = self.backend.get(id(tensor), -1)
        return own if own >= 0 else self.backend.get(id(root), -1)

    def _assign_sources(self, node: Tensor) -> None:
        backend = self.backend
        if backend[id(node)] < 0 and node.view_src is not None:
            backend[id(node)] = backend.get(id(node.view_src), -1)
        for src in node.srcs:
            if backend.get(id(src), -1) < 0:
                backend[id(src)] = backend.get(id(src.view_src), -1) if src.view_src is not None else backend[id(node)]
        if backend[id(node)] < 0:
            backend[id(node)] = next(b for b in range(self.cpu + 1) if self.supports(b, node))

    def split(self) -> Scheduled:
        """Pass 5 and the copy of the graph: each split starts with copies of what lies elsewhere."""
        nodes: list[tuple[Tensor, int]] = []
        leafs: list[tuple[Tensor, int]] = []
        inputs: list[Tensor] = []
        pending: list[tuple[Tensor, int]] = []
        current = next((self.backend[id(n)] for n in self.graph.nodes if n.op not in VIEWS), self.cpu)
        n_splits = 1

        def flush() -> None:
            for tensor in inputs:
                keep = Tensor("NONE", tensor.ne, tensor.nbytes, (tensor,), tensor)
                nodes.append((keep, self.backend[id(tensor)]))
                nodes.append((self.copies[id(tensor), current][0], current))
            nodes.extend(self._with_dependencies(pending, current))
            inputs.clear()
            pending.clear()

        for node in self.graph.nodes:
            if node.op not in VIEWS:
                own = self.backend[id(node)]
                if own != current or (inputs and self._needs_split(node, current)):
                    flush()
                    n_splits += 1
                    current = own
                self._copy_sources(node, current, inputs, leafs)
            pending.append((node, self.backend[id(node)]))
        flush()
        own_leafs = [(leaf, self.backend[id(leaf)]) for leaf in self.graph.leafs]
        if self.n_copies > 1:
            spare = [(self._spare(leaf), b) for leaf, b in own_leafs if leaf.is_input for _ in range(self.n_copies - 1)]
            own_leafs = [*spare, *own_leafs]
        return Scheduled(nodes, [*leafs, *own_leafs], n_splits)

    def _with_dependencies(self, split: list[tuple[Tensor, int]], current: int) -> list[tuple[Tensor, int]]:
        """What fused kernels read stays allocated until they are done (ggml_backend_cuda_graph_optimize)."""
        if current == self.cpu or not (self.graph.fused_routes or self.graph.fused_reductions):
            return split
        index = {id(node): i for i, (node, _) in enumerate(split)}
        keeps: dict[int, list[Tensor]] = {}
        for first, end in self.graph.fused_routes:
            until = self.graph.nodes[end] if end < len(self.graph.nodes) else None
            if id(first) in index and until is not None and id(until) in index:
                kept = keeps.setdefault(index[id(until)], [])
                for node, _ in split[index[id(first)] : index[id(until)]]:
                    kept.extend(t for t in (node, *node.srcs) if t not in kept)
        for first, kept_tensors, last in self.graph.fused_reductions:
            if id(first) in index and id(last) in index:
                kept = keeps.setdefault(index[id(last)], [])
                kept.extend(t for t in kept_tensors if t not in kept)
        result: list[tuple[Tensor, int]] = []
        for i, item in enumerate(split):
            result.append(item)
            for start in range(0, len(keeps.get(i, ())), MAX_SRC):
                group = tuple(keeps[i][start : start + MAX_SRC])
                result.append((Tensor("NONE", group[0].ne, group[0].nbytes, group, group[0]), current))
        return result

    def _needs_split(self, node: Tensor, current: int) -> bool:
        return any(src.buffer >= 0 and src.is_weight and src.buffer != current for src in node.srcs)

    def _copy_sources(self, node: Tensor, current: int, inputs: list[Tensor], leafs: list[tuple[Tensor, int]]) -> None:
        srcs = list(node.srcs)
        for index, src in enumerate(srcs):
            if self.backend[id(src)] == current or self._where(src) == current:
                continue
            copies = self.copies.get((id(src), current))
            if copies is None:
                copies = [self._spare(src) for _ in range(self.n_copies)]
                self.copies[id(src), current] = copies
                for copy in copies:
                    self.backend[id(copy)] = current
                if self.n_copies > 1:
                    leafs.extend((copy, current) for copy in copies)
                inputs.append(src)
            srcs[index] = copies[0]
        node.srcs = tuple(srcs)

    def _spare(self, src: Tensor) -> Tensor:
        copy = Tensor("NONE", src.ne, src.nbytes)
        copy.kind, copy.extra = src.kind, src.extra
        copy.is_output = self.n_copies > 1
        return copy


def schedule(
    graph: Graph, *, n_backends: int, supports: Supports, op_offload: bool = True, pipeline: bool = False
) -> Scheduled:
    """The graph as the scheduler allocates it."""
    scheduler = _Scheduler(graph, n_backends, supports, op_offload=op_offload, n_copies=N_COPIES if pipeline else 1)
    scheduler.assign()
    return scheduler.split()
