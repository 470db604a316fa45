"""A compute graph in sizes only: what llama.cpp would build, without a byte of it.

`Tensor` and `Graph` mirror ggml_tensor and ggml_cgraph as far as memory goes; node order is that of
ggml_build_forward_expand (depth first, sources from left to right; ggml/src/ggml.c of llama.cpp 0c1e570).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# ggml/src/ggml-alloc.c, ggml_op_can_inplace: these may take over the buffer of a source of the same layout.
INPLACE = frozenset({
    "FILL", "SCALE", "ADD", "ADD_ID", "SUB", "MUL", "DIV", "SQR", "SQRT", "LOG", "UNARY", "ROPE", "RMS_NORM",
    "SOFT_MAX", "CLAMP",
})  # fmt: skip
VIEWS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"})  # ggml_is_view_op
F32 = 4  # bytes an element


class Tensor:
    """One tensor. `ne` are its elements by dimension, `nbytes` its size; `backend` where it is pinned, else -1."""

    __slots__ = ("backend", "buffer", "extra", "is_input", "is_output", "is_weight", "kind", "nbytes", "ne", "op",
                 "srcs", "view_src")  # fmt: skip

    def __init__(
        self, op: str, ne: tuple[int, ...], nbytes: int, srcs: tuple[Tensor, ...] = (), view_src: Tensor | None = None
    ) -> None:
        self.op, self.ne, self.nbytes, self.srcs = op, ne, nbytes, srcs
        root: Tensor | None = view_src.view_src if view_src is not None else None
        self.view_src: Tensor | None = root if root is not None else view_src
        self.buffer = -1  # the backend whose buffer holds it from the start (weights, caches)
        self.backend = -1  # user-assigned backend
        self.is_input = self.is_output = self.is_weight = False
        self.kind = "f32"
        self.extra = 0  # bytes that a GPU backend adds to its allocation


class Graph:
    """Nodes and leaves in the order of execution, and the ops that make them."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        # What CUDA fuses: (first node, index after the last) and (first node, what must stay, last node).
        self.fused_routes: list[tuple[Tensor, int]] = []
        self.fused_reductions: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
        self._seen: set[int] = set()
        self._keep: list[Tensor] = []  # ids are only unique while their tensors live

    def expand(self, tensor: Tensor) -> Tensor:
        """Adds the tensor and everything it needs that is not in the graph yet."""
        seen = self._seen
        if id(tensor) in seen:
            return tensor
        stack: list[tuple[Tensor, int]] = [(tensor, 0)]
        seen.add(id(tensor))
        self._keep.append(tensor)
        while stack:
            current, index = stack.pop()
            srcs = current.srcs
            while index < len(srcs) and id(srcs[index]) in seen:
                index += 1
            if index < len(srcs):
                stack.append((current, index + 1))
                child = srcs[index]
                seen.add(id(child))
                stack.append((child, 0))
                continue
            (self.leafs if current.op == "NONE" else self.nodes).append(current)
        return tensor

    # Leaves ----------------------------------------------------------------------------------------------------

    @staticmethod
    def input(*ne: int, size: int = F32, kind: str = "f32") -> Tensor:
        """What the caller fills before each step: `size` bytes an element."""
        tensor = Tensor("NONE", ne, size * _product(ne))
        tensor.is_input, tensor.kind = True, kind
        return tensor

    @staticmethod
    def held(ne: Sequence[int], nbytes: int, *, buffer: int, weight: bool, kind: str = "f32", extra: int = 0) -> Tensor:
        """A weight or a cache: it lies in a buffer of its own."""
        tensor = Tensor("NONE", tuple(ne), nbytes)
        tensor.buffer, tensor.is_weight, tensor.kind, tensor.extra = buffer, weight, kind, extra
        return tensor

    # Ops -------------------------------------------------------------------------------------------------------

    @staticmethod
    def make(op: str, ne: tuple[int, ...], *srcs: Tensor, size: int = F32) -> Tensor:
        """A new tensor of `size` bytes an element."""
        return Tensor(op, ne, size * _product(ne), srcs)

    @staticmethod
    def like(op: str, *srcs: Tensor) -> Tensor:
        """A new tensor of the first source's shape in f32."""
        return Tensor(op, srcs[0].ne, F32 * _product(srcs[0].ne), srcs)

    @staticmethod
    def view(source: Tensor, *ne: int, op: str = "VIEW") -> Tensor:
        """A view, reshape, permutation or transposition: no memory of its own, but the bytes it spans if copied."""
        own, whole = _product(ne), _product(source.ne)
        nbytes = source.nbytes
        if op == "VIEW" and own < whole:
            nbytes = _span(source, ne, own, whole)
        tensor = Tensor(op, ne, nbytes, (source,), source)
        tensor.kind = source.kind
        return tensor

    @staticmethod
    def into(op: str, target: Tensor, *srcs: Tensor) -> Tensor:
        """An op that writes into `target` (SET_ROWS, CPY): its result is a view of it."""
        tensor = Tensor(op, target.ne, target.nbytes, srcs, target)
        tensor.kind = target.kind
        return tensor

    def matmul(self, weight: Tensor, x: Tensor) -> Tensor:
        """MUL_MAT: [rows of the weight, columns of x] in f32."""
        return self.make("MUL_MAT", (weight.ne[1], *x.ne[1:]), weight, x)

    def matmul_id(self, experts: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """MUL_MAT_ID: [rows of an expert, experts used, tokens] in f32."""
        return self.make("MUL_MAT_ID", (experts.ne[1], ids.ne[0], ids.ne[1]), experts, x, ids)

    def get_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        return self.make("GET_ROWS", (table.ne[0], *ids.ne), table, ids)


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _span(source: Tensor, ne: tuple[int, ...], own: int, whole: int) -> int:
    """Bytes from a view's first to its last element: a cut through every row of its source, or fewer rows."""
    rows = _product(source.ne[1:])
    if rows and rows in (_product(ne[1:]), _product(ne[2:])):
        return source.nbytes - (whole - own) * source.nbytes // whole // rows
    return source.nbytes * own // whole if whole else 0
