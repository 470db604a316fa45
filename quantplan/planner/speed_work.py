"""What one token costs a device, whatever the device: bytes read, multiplications, kernels, cache cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quantplan.ggml_types import ggml_types
from quantplan.memory.flash import is_latent
from quantplan.memory.placement import Placement
from quantplan.memory.weights import parts_of
from quantplan.model.facts import LayerFacts, ModelFacts, TensorFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix as decoding reads it: `experts` is how many of it lie in the tensor (1: all of it is read)."""

    name: str
    layer: int  # n_layer: the head
    kind: str
    nbytes: int
    n_elements: int
    experts: int = 1


@dataclass(slots=True)
class DeviceWork:
    """What one device does for a token: bytes and multiplications by weight type, dense and of experts apart."""

    dense_bytes: dict[str, int] = field(default_factory=dict)
    dense_elements: dict[str, int] = field(default_factory=dict)
    expert_bytes: dict[str, int] = field(default_factory=dict)
    expert_elements: dict[str, int] = field(default_factory=dict)
    n_dense: int = 0  # matrices
    n_expert: int = 0
    n_layers: int = 0
    caches: dict[LayerFacts, int] = field(default_factory=dict)
    n_from_host: int = 0  # layers whose dense part is on another device than this one's experts


@dataclass(slots=True)
class PreparedSpeed:
    """A model at a preset: what many placements share."""

    facts: ModelFacts
    matrices: tuple[Matrix, ...]
    n_expert: int
    n_expert_used: int
    embedding_row_bytes: int
    placed: dict[Placement, tuple[DeviceWork, ...]] = field(default_factory=dict)


def prepare_speed(facts: ModelFacts, tensors: Sequence[TensorFacts] | None = None) -> PreparedSpeed:
    """`tensors` are the file's after quantization (default: as the facts have them)."""
    types = ggml_types()
    n_nextn = facts.metadata.get(f"{facts.arch}.nextn_predict_layers", 0)
    n_skipped = n_nextn if isinstance(n_nextn, int) and 0 < n_nextn < facts.n_layer else 0
    parts = parts_of(tensors if tensors is not None else facts.tensors, n_layer=facts.n_layer, n_skipped=n_skipped,
                     types=types)  # fmt: skip
    matrices = []
    for part in parts:
        if part.layer is None or len(part.ne) < 2:
            continue
        n_elements = 1
        for n in part.ne:
            n_elements *= n
        experts = part.ne[2] if len(part.ne) == 3 and "_exps" in part.name else 1
        matrices.append(Matrix(name=part.name, layer=min(part.layer, facts.n_layer), kind=part.type_name,
                               nbytes=part.nbytes, n_elements=n_elements, experts=experts))  # fmt: skip
    return PreparedSpeed(
        facts=facts, matrices=tuple(matrices), n_expert=max(facts.n_expert, 1),
        n_expert_used=max(facts.n_expert_used, 1), embedding_row_bytes=facts.n_embd * 4,
    )  # fmt: skip


def work_of(model: PreparedSpeed, placement: Placement) -> tuple[DeviceWork, ...]:
    """The work by device, the host last; kept by placement."""
    known = model.placed.get(placement)
    if known is None:
        known = model.placed[placement] = _work(model, placement)
    return known


def _work(model: PreparedSpeed, placement: Placement) -> tuple[DeviceWork, ...]:
    host = len(placement.devices)
    layers = placement.layer_devices(model.facts.n_layer)
    index = {name: i for i, name in enumerate(placement.devices)} | {"CPU": host}
    works = tuple(DeviceWork() for _ in range(host + 1))
    for matrix in model.matrices:
        to = layers[matrix.layer]
        named = placement.override_of(matrix.name) if placement.has_overrides else None
        if named is not None:
            to = index[named]
        work = works[to]
        n_bytes, n_elements = (
            (work.dense_bytes, work.dense_elements)
            if matrix.experts == 1
            else (work.expert_bytes, work.expert_elements)
        )
        n_bytes[matrix.kind] = n_bytes.get(matrix.kind, 0) + matrix.nbytes
        n_elements[matrix.kind] = n_elements.get(matrix.kind, 0) + matrix.n_elements
        if matrix.experts == 1:
            work.n_dense += 1
        else:
            work.n_expert += 1
            work.n_from_host += to != layers[matrix.layer]
    for il, layer in enumerate(model.facts.layers):
        work = works[layers[il]]
        work.n_layers += 1
        work.caches[layer] = work.caches.get(layer, 0) + 1
    return works


def cache_bytes_per_cell(layer: LayerFacts, *, k_bytes: float, v_bytes: float) -> float:
    """Bytes that one token of depth adds to what attention reads in this layer."""
    if not (layer.has_kv and layer.n_head_kv):
        return 0.0
    values = layer.n_embd_head_v if not is_latent(layer) else 0  # MLA reads its latent once for both
    return layer.n_head_kv * (layer.n_embd_head_k * k_bytes + values * v_bytes)
