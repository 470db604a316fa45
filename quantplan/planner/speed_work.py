"""What one token costs a device, whatever the device: bytes read, multiplications, kernels, cells of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from quantplan.memory.estimate import loaded_parts
from quantplan.memory.flash import is_latent
from quantplan.memory.placement import ContextParams, Placement
from quantplan.memory.weights import Part
from quantplan.model.facts import LayerFacts, ModelFacts, TensorFacts
from quantplan.planner.calibration import weight_class

_STATE_BYTES = 4  # recurrent states are f32 (memory.kv_cache); a token reads them and writes them
_LATENT_ROPE = 64  # MLA: K is the latent and 64 rotated elements, V the latent


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The weights of one layer that go together: dense ones, or the experts."""

    layer: int  # n_layer: the head
    is_expert: bool
    nbytes: tuple[tuple[str, int], ...]  # by weight class
    n_elements: tuple[tuple[str, int], ...]
    n_matrices: int
    n_vectors: int
    name: str = ""  # only where every tensor is a piece of its own


@dataclass(slots=True)
class DeviceWork:
    """What one device does: bytes and elements of weights by class (dense, and of all experts), kernels, caches."""

    dense_bytes: dict[str, int] = field(default_factory=dict)
    dense_elements: dict[str, int] = field(default_factory=dict)
    expert_bytes: dict[str, int] = field(default_factory=dict)
    expert_elements: dict[str, int] = field(default_factory=dict)
    n_matrices: int = 0
    n_vectors: int = 0
    n_attention: int = 0
    n_recurrent: int = 0
    n_mixtures: int = 0
    n_runs: int = 0  # times the work comes to this device
    caches: dict[LayerFacts, int] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        return not (self.n_matrices or self.caches)


@dataclass(slots=True)
class PreparedSpeed:
    """A model at a preset: what many placements share. `same_experts`: every token takes the same ones, as it does
    in a model without weights."""

    facts: ModelFacts
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    share: float  # of the experts, that a token uses
    same_experts: bool
    placed: dict[tuple[Placement, bool], tuple[DeviceWork, ...]] = field(default_factory=dict)
    kept: dict[str, tuple[object, object]] = field(default_factory=dict)  # corrections, by host

    @property
    def tensors(self) -> tuple[Piece, ...]:
        """Every tensor a piece of its own: for placements by name."""
        return tuple(_single(part, self.facts.n_layer) for part in self.parts if part.layer is not None)

    @property
    def is_mixture(self) -> bool:
        return self.share < 1

    @property
    def decode_bytes(self) -> int:
        """Bytes of weights that one token reads."""
        return sum(
            int(size * (self.share if piece.is_expert else 1)) for piece in self.pieces for _, size in piece.nbytes
        )

    @property
    def main_class(self) -> str:
        """The class that most of the weights have."""
        sums: dict[str, int] = {}
        for piece in self.pieces:
            for kind, size in piece.nbytes:
                sums[kind] = sums.get(kind, 0) + size
        return max(sums, key=lambda kind: (sums[kind], kind), default="f")

    def touched(self, n_tokens: float) -> float:
        """The share of the experts that at least one of so many tokens uses."""
        if self.same_experts or n_tokens <= 1:
            return self.share
        return float(1 - (1 - self.share) ** n_tokens)


def prepare_speed(
    facts: ModelFacts, tensors: Sequence[TensorFacts] | None = None, *, same_experts: bool = False,
    parts: tuple[Part, ...] | None = None,
) -> PreparedSpeed:  # fmt: skip
    """`tensors` are the file's after quantization (default: as the facts have them), `parts` what is loaded of them,
    where that is known already."""
    loaded = loaded_parts(facts, tensors) if parts is None else parts
    used = facts.metadata.get(f"{facts.arch}.expert_used_count", facts.n_expert_used)
    n_used = sum(int(n) for n in used) / len(used) if isinstance(used, (list, tuple)) else facts.n_expert_used
    return PreparedSpeed(
        facts=facts, pieces=_merged(loaded, facts.n_layer), parts=loaded,
        share=min(n_used / facts.n_expert, 1.0) if facts.n_expert else 1.0, same_experts=same_experts,
    )  # fmt: skip


def _single(part: Part, n_layer: int) -> Piece:
    """One tensor that belongs to a layer or the head."""
    assert part.layer is not None
    kind, is_matrix = weight_class(part.type_name), len(part.ne) > 1
    return Piece(
        layer=min(part.layer, n_layer), is_expert="_exps" in part.name and is_matrix, nbytes=((kind, part.nbytes),),
        n_elements=((kind, prod(part.ne)),), n_matrices=int(is_matrix), n_vectors=int(not is_matrix), name=part.name,
    )  # fmt: skip


def _merged(parts: Sequence[Part], n_layer: int) -> tuple[Piece, ...]:
    """Two pieces a layer, dense and experts: placements that know no tensor names need no more."""
    groups: dict[tuple[int, bool], tuple[dict[str, int], dict[str, int], list[int]]] = {}
    for part in parts:
        if part.layer is None:
            continue
        kind, is_matrix = weight_class(part.type_name), len(part.ne) > 1
        key = (min(part.layer, n_layer), is_matrix and "_exps" in part.name)
        group = groups.get(key)
        if group is None:
            group = groups[key] = ({}, {}, [0, 0])
        n_bytes, n_elements, counts = group
        n_bytes[kind] = n_bytes.get(kind, 0) + part.nbytes
        n_elements[kind] = n_elements.get(kind, 0) + prod(part.ne)
        counts[0 if is_matrix else 1] += 1
    return tuple(
        Piece(layer=layer, is_expert=is_expert, nbytes=tuple(n_bytes.items()), n_elements=tuple(n_elements.items()),
              n_matrices=counts[0], n_vectors=counts[1])
        for (layer, is_expert), (n_bytes, n_elements, counts) in groups.items()
    )  # fmt: skip


def work_of(model: PreparedSpeed, placement: Placement, *, kv_offload: bool = True) -> tuple[DeviceWork, ...]:
    """The work by device, the host last; kept by placement."""
    known = model.placed.get((placement, kv_offload))
    if known is None:
        known = model.placed[placement, kv_offload] = _work(model, placement, kv_offload)
    return known


def _work(model: PreparedSpeed, placement: Placement, kv_offload: bool) -> tuple[DeviceWork, ...]:
    host = len(placement.devices)
    layers = placement.layer_devices(model.facts.n_layer)
    works = tuple(DeviceWork() for _ in range(host + 1))
    mixed: set[int] = set()
    for piece, to in _placed_pieces(model, placement, layers):
        _add(works[to], piece)
        if piece.is_expert and piece.layer not in mixed:
            mixed.add(piece.layer)
            works[layers[piece.layer]].n_mixtures += 1
            works[to].n_runs += to != layers[piece.layer]
    for il, layer in enumerate(model.facts.layers):
        to = layers[il]
        at = to if kv_offload else host
        works[at].caches[layer] = works[at].caches.get(layer, 0) + 1
        works[at].n_runs += at != to
        if layer.has_kv or layer.n_head_kv:
            works[to].n_attention += 1
        if layer.n_embd_r or layer.n_embd_s:
            works[to].n_recurrent += 1
    for before, after in pairwise(layers):
        works[after].n_runs += before != after
    return works


def _placed_pieces(model: PreparedSpeed, placement: Placement, layers: Sequence[int]) -> list[tuple[Piece, int]]:
    if not placement.has_overrides:
        return [(piece, layers[piece.layer]) for piece in model.pieces]
    host = len(placement.devices)
    if not placement.overrides:
        on_host = model.facts.n_layer if placement.cpu_moe else placement.n_cpu_moe
        return [(p, host if p.is_expert and p.layer < on_host else layers[p.layer]) for p in model.pieces]
    index = {name: i for i, name in enumerate(placement.devices)} | {"CPU": host}
    found = []
    for piece in model.tensors:
        named = placement.override_of(piece.name)
        found.append((piece, index[named] if named is not None else layers[piece.layer]))
    return found


def _add(work: DeviceWork, piece: Piece) -> None:
    n_bytes, n_elements = (
        (work.expert_bytes, work.expert_elements) if piece.is_expert else (work.dense_bytes, work.dense_elements)
    )
    for kind, size in piece.nbytes:
        n_bytes[kind] = n_bytes.get(kind, 0) + size
    for kind, count in piece.n_elements:
        n_elements[kind] = n_elements.get(kind, 0) + count
    work.n_matrices += piece.n_matrices
    work.n_vectors += piece.n_vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheWork:
    """What attention and recurrence read for one token at a depth: bytes, and multiplications with the cache."""

    nbytes: float
    n_products: float


_TYPE_BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q5_1": 24 / 32, "Q5_0": 22 / 32, "Q4_1": 20 / 32,
               "Q4_0": 18 / 32, "IQ4_NL": 18 / 32}  # fmt: skip


def cache_work(model: PreparedSpeed, work: DeviceWork, ctx: ContextParams, n_depth: float) -> CacheWork:
    """A window reads no more than itself; MLA reads its latent once for keys and values."""
    k_bytes, v_bytes = _TYPE_BYTES[ctx.type_k], _TYPE_BYTES[ctx.type_v]
    n_swa = model.facts.n_swa
    n_bytes = n_products = 0.0
    for layer, count in work.caches.items():
        n_bytes += count * 2 * _STATE_BYTES * (layer.n_embd_r + layer.n_embd_s)
        if not (layer.n_head and layer.n_embd_head_k and layer.n_head_kv):
            continue
        cells = min(n_depth, n_swa) if layer.is_swa and n_swa else n_depth
        latent = is_latent(layer)
        values = layer.n_embd_head_k - _LATENT_ROPE if latent else layer.n_embd_head_v
        per_cell = layer.n_head_kv * (layer.n_embd_head_k * k_bytes + (0 if latent else values * v_bytes))
        n_bytes += count * cells * per_cell
        n_products += count * cells * layer.n_head * (layer.n_embd_head_k + values)
    return CacheWork(nbytes=n_bytes, n_products=n_products)
