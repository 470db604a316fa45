"""Compute buffers: the peak of the graphs that the engine reserves, played through its own allocator.

The graph of a few representative layers stands for all of them: what is allocated while a layer runs depends on that
layer and its neighbours only. Its tensors' sizes are linear in the cells of the caches once everything else is fixed,
so a graph is built once and then only sized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantplan.memory.alloc import Event, events, peak_bytes
from quantplan.memory.blocks import Blocks, GraphParams, Weight
from quantplan.memory.graph import Tensor
from quantplan.memory.networks import Network, build_graph
from quantplan.memory.sched import schedule
from quantplan.memory.weights import GPU_ALIGN, HOST_ALIGN, Part
from quantplan.model.facts import LayerFacts, ModelFacts

# Cell counts so large that a size divides into its parts: bytes, bytes a cell, bytes a window cell.
_KV_UNIT, _SWA_UNIT = 1 << 60, 1 << 120
_PERIODS = (1, 2, 3, 4, 5, 6, 8)  # of layer kinds, as models have them
_SETTLED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """One graph that is reserved: everything but the cells, and the cells."""

    params: GraphParams
    pipeline: bool  # several GPUs in pipeline: four copies of every input


@dataclass(slots=True)
class _Template:
    """A graph whose tensors are sized by (bytes, bytes a cell, bytes a window cell, alignment)."""

    what: list[Event]
    formulas: list[tuple[int, int, int, int]]
    formula_of_slot: list[int]
    n_backends: int

    def peaks(self, n_kv: int, n_kv_swa: int) -> list[int]:
        values = [-(-(base + kv * n_kv + swa * n_kv_swa) // align) * align for base, kv, swa, align in self.formulas]
        return peak_bytes(self.what, [values[i] for i in self.formula_of_slot], self.n_backends)


@dataclass(slots=True)
class GraphModel:
    """A model prepared for sizing: its tensors by layer, and the graphs built so far."""

    facts: ModelFacts
    parts: Sequence[Part]
    n_trunk: int  # layers that the main graph runs
    n_expert_used: Sequence[int]
    kv_sizes: Mapping[str, tuple[int, int]]
    by_layer: list[list[tuple[str, int]]] = field(default_factory=list)  # (suffix, index in parts)
    outside: list[int] = field(default_factory=list)
    shapes: dict[object, int] = field(default_factory=dict)
    templates: dict[object, _Template] = field(default_factory=dict)
    results: dict[object, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_layer = self.facts.n_layer
        self.by_layer = [[] for _ in range(n_layer)]
        for index, part in enumerate(self.parts):
            if part.name.startswith("blk.") and part.layer is not None and part.layer < n_layer:
                self.by_layer[part.layer].append((part.name.split(".", 2)[2], index))
            else:
                self.outside.append(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a model lies: the backend of each tensor and of each layer's cache, and which layers stand
    for all of them."""

    backends: Sequence[int]
    cache_backends: Sequence[int]
    n_backends: int
    build: tuple[int, ...]
    key: int


def layout_of(
    model: GraphModel, *, backends: Sequence[int], cache_backends: Sequence[int], n_backends: int, whole: bool
) -> Layout:
    """Layouts that build the same graph share their key. `whole`: build every layer, for the last MiB."""
    kinds = _layer_kinds(model, backends, cache_backends, n_backends)
    build = tuple(range(len(kinds))) if whole else representative(kinds)
    shape = (tuple(kinds[il] for il in build), tuple(backends[i] for i in model.outside), n_backends)
    key = model.shapes.setdefault(shape, len(model.shapes))
    return Layout(backends=backends, cache_backends=cache_backends, n_backends=n_backends, build=build, key=key)


def compute_bytes(model: GraphModel, reservation: Reservation, layout: Layout) -> list[int]:
    """Bytes of the compute buffer of each backend for one reserved graph."""
    params = reservation.params
    key = (layout.key, reservation.pipeline, *_hashable(params))
    cells = (*key, params.n_kv, params.n_kv_swa)
    known = model.results.get(cells)
    if known is None:
        template = model.templates.get(key)
        if template is None:
            template = model.templates[key] = _make_template(model, reservation, layout)
        known = model.results[cells] = template.peaks(params.n_kv, params.n_kv_swa)
    return known


def _hashable(params: GraphParams) -> tuple[object, ...]:
    return (params.n_tokens, params.n_seqs, params.n_outputs, params.n_stream, params.flash_attn, params.type_k,
            params.type_v, params.n_rs, params.rotates_k, params.rotates_v, params.pin_attention)  # fmt: skip


def _layer_kinds(
    model: GraphModel, backends: Sequence[int], cache_backends: Sequence[int], n_backends: int
) -> list[tuple[object, ...]]:
    """What tells two layers apart in a graph: their facts, their tensors, and for those on the host beside a GPU
    their sizes, since they are copied."""
    host = n_backends - 1
    kinds: list[tuple[object, ...]] = []
    for il in range(model.n_trunk):
        tensors = tuple(
            (suffix, model.parts[i].ne, backends[i], model.parts[i].nbytes if host and backends[i] == host else 0)
            for suffix, i in model.by_layer[il]
        )
        kinds.append((model.facts.layers[il], tensors, cache_backends[il], model.n_expert_used[il], _phase(model, il)))
    return kinds


def _phase(model: GraphModel, il: int) -> int:
    """SmolLM3 leaves out the rotation in every fourth layer: the only choice made by a layer's number."""
    return il % 4 if model.facts.arch == "smollm3" else 0


def representative(kinds: Sequence[object]) -> tuple[int, ...]:
    """Layer indices, ascending, that stand for all: of a stretch that repeats with some period, the first three
    periods and what is left after leaving out an even number of them.

    Three, because the allocator needs a few layers until it places every layer like an earlier one; even, because
    it then often alternates between two placements. `tests/memory/test_compute.py` holds this against whole graphs.
    """
    names: dict[object, int] = {}
    ids = [names.setdefault(kind, len(names)) for kind in kinds]
    chosen: list[int] = []
    il = 0
    while il < len(ids):
        chosen.append(il)
        il += 1 + next((skip for period in _PERIODS if (skip := _repeats(ids, chosen, il, period))), 0)
    return tuple(chosen)


def _repeats(ids: Sequence[int], chosen: Sequence[int], il: int, period: int) -> int:
    """Layers to leave out after `il` when the last three periods up to it are alike; at least one stays."""
    start = il - _SETTLED * period + 1
    if start < 0 or len(chosen) < _SETTLED * period or chosen[-_SETTLED * period] != start:
        return 0
    if any(ids[j] != ids[j - period] for j in range(start + period, il + 1)):
        return 0
    end = il
    while end + 1 < len(ids) and ids[end + 1] == ids[end + 1 - period]:
        end += 1
    return max((end - il - 1) // (2 * period) * (2 * period), 0)


def _make_template(model: GraphModel, reservation: Reservation, layout: Layout) -> _Template:
    build, n_backends = layout.build, layout.n_backends
    params = replace(reservation.params, n_kv=_KV_UNIT, n_kv_swa=_SWA_UNIT)
    blocks = Blocks(_weights(model, layout), params, model.facts.metadata, dict(enumerate(layout.cache_backends)))
    network = Network(layers=model.facts.layers, build=build, n_swa=_window(model.facts.layers, model.facts.n_swa),
                      n_expert_used=model.n_expert_used)  # fmt: skip
    done = schedule(
        build_graph(blocks, network), n_backends=n_backends, supports=_supports, pipeline=reservation.pipeline
    )
    what, slots = events(done)
    host = n_backends - 1
    names: dict[tuple[int, int, int, int], int] = {}
    of_slot = []
    for tensor, buffer in zip(slots, _buffers(what, len(slots)), strict=True):
        total = tensor.nbytes + (tensor.extra if buffer != host else 0)
        swa = (total + _SWA_UNIT // 2) // _SWA_UNIT
        kv = (total - swa * _SWA_UNIT + _KV_UNIT // 2) // _KV_UNIT
        fixed = total - swa * _SWA_UNIT - kv * _KV_UNIT  # below 0 where a view ends before its last row does
        align = HOST_ALIGN if buffer == host else GPU_ALIGN
        of_slot.append(names.setdefault((fixed, kv, swa, align), len(names)))
    return _Template(what, list(names), of_slot, n_backends)


def _window(layers: Sequence[LayerFacts], n_swa: int) -> int:
    return n_swa if any(layer.is_swa for layer in layers) else 0


def _weights(model: GraphModel, layout: Layout) -> dict[str, Weight]:
    chosen = [index for il in layout.build for _, index in model.by_layer[il]]
    made = {}
    for index in (*model.outside, *chosen):
        part = model.parts[index]
        made[part.name] = Weight(ne=part.ne, nbytes=part.nbytes, backend=layout.backends[index],
                                 extra=part.gpu_extra, kind=part.type_name)  # fmt: skip
    return made


def _buffers(what: Sequence[Event], n_slots: int) -> list[int]:
    buffers = [0] * n_slots
    for buffer, slot, _ in what:
        if slot >= 0:
            buffers[slot] = buffer
    return buffers


def _supports(backend: int, tensor: Tensor) -> bool:
    """CUDA runs every op of the graphs built here (ggml-cuda.cu, ggml_backend_cuda_device_supports_op)."""
    return True
