"""Memory of one configuration by device: weights, context, compute, output, driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from quantplan.ggml_types import ggml_types
from quantplan.memory.blocks import GraphParams
from quantplan.memory.compute import GraphModel, Layout, Reservation, compute_bytes, layout_of
from quantplan.memory.kv_cache import context_bytes
from quantplan.memory.networks import PARTLY_BUILT
from quantplan.memory.placement import KV_TYPES, ContextParams, Placement
from quantplan.memory.weights import Part, Weights, parts_of, weight_bytes
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.model.layer_rules import KNOWN_ARCHITECTURES, NO_MEMORY, UNMODELLED
from quantplan.units import pad

Reserve = Literal["server", "fit-params"]
HOST = "Host"
LOGIT_BYTES = 4
# src/models/*.cpp: the head is made before the embedding, so without a mapped file the host holds both.
_HEAD_FIRST = frozenset({"gemma3n", "gemma4"})
# From so many tokens a slot on, the whole micro-batch's graph is larger than the single tokens' in every buffer: its
# mask alone outweighs the attention scores of one token a slot (models have up to 128 heads).
_DOMINATES = 128


class Origin(Enum):
    """Whether a number was computed here or said by the engine."""

    CALCULATED = "calculated"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """What a GPU's driver takes for itself, by measurement or as published; a range, and the value planned with."""

    low_bytes: int
    high_bytes: int
    planned_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraModel:
    """A companion that is loaded too (projector, adapter, draft), on one device."""

    name: str
    device: str
    model_bytes: int
    context_bytes: int = 0
    compute_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """One device's memory by part. `extra_bytes` are companions; on the host, `mapped_bytes` is the range of the file
    that stays mapped and `repacked_bytes` the anonymous copies: both are parts of what model_bytes stands for."""

    name: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int
    output_bytes: int = 0
    overhead_bytes: int = 0
    extra_bytes: int = 0
    mapped_bytes: int = 0
    repacked_bytes: int = 0
    prompt_cache_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What must be there at once. The prompt cache is not: it grows up to its limit while serving."""
        return (self.model_bytes + self.context_bytes + self.compute_bytes + self.output_bytes + self.overhead_bytes
                + self.extra_bytes)  # fmt: skip

    @property
    def ready_anonymous_bytes(self) -> int:
        """Anonymous memory that is resident once the server is ready: a compute buffer is reserved and not touched
        before the first long prompt. The process itself comes on top (15 to 47 MiB, by the vocabulary's size)."""
        return self.repacked_bytes + self.context_bytes + self.output_bytes

    @property
    def buffers_bytes(self) -> int:
        """The engine's own buffers: without the driver."""
        return self.total_bytes - self.overhead_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """All devices, GPUs first, the host last. compute_bytes of a device is None nowhere: unknown is `compute_known`."""

    devices: tuple[DeviceMemory, ...]
    origin: Origin
    reserve: Reserve
    engine_build: str | None = None
    compute_known: bool = True
    warnings: tuple[str, ...] = ()

    def device(self, name: str) -> DeviceMemory:
        return next(device for device in self.devices if device.name == name)


@dataclass(slots=True)
class PreparedModel:
    """A model with its tensor types settled: what many configurations share."""

    facts: ModelFacts
    parts: tuple[Part, ...]
    graphs: GraphModel
    kv_sizes: Mapping[str, tuple[int, int]]
    placed: dict[Placement, tuple[list[int], list[int]]] = field(default_factory=dict)
    layouts: dict[tuple[Placement, bool, bool], Layout] = field(default_factory=dict)
    weighed: dict[tuple[Placement, frozenset[str]], Weights] = field(default_factory=dict)


def loaded_parts(facts: ModelFacts, tensors: Sequence[TensorFacts] | None = None) -> tuple[Part, ...]:
    """The tensors that the engine loads. `tensors` are the file's after quantization (default: as the facts have
    them)."""
    return parts_of(tensors if tensors is not None else facts.tensors, n_layer=facts.n_layer,
                    n_skipped=_skipped(facts), types=ggml_types())  # fmt: skip


def _skipped(facts: ModelFacts) -> int:
    n_nextn = facts.metadata.get(f"{facts.arch}.nextn_predict_layers", 0)
    return n_nextn if isinstance(n_nextn, int) and 0 < n_nextn < facts.n_layer else 0


def prepare(
    facts: ModelFacts, tensors: Sequence[TensorFacts] | None = None, *, parts: tuple[Part, ...] | None = None
) -> PreparedModel:
    """`tensors` are the file's after quantization (default: as the facts have them), `parts` what is loaded of them,
    where that is known already."""
    types = ggml_types()
    n_skipped = _skipped(facts)
    parts = loaded_parts(facts, tensors) if parts is None else parts
    kv_sizes = {name: (types[name].block_size, types[name].type_size) for name in KV_TYPES}
    used = facts.metadata.get(f"{facts.arch}.expert_used_count", 0)
    per_layer = [int(n) for n in used] if isinstance(used, (list, tuple)) else [facts.n_expert_used] * facts.n_layer
    graphs = GraphModel(facts=facts, parts=parts, n_trunk=facts.n_layer - n_skipped, n_expert_used=per_layer,
                        kv_sizes=kv_sizes)  # fmt: skip
    return PreparedModel(facts=facts, parts=parts, graphs=graphs, kv_sizes=kv_sizes)


def estimate_memory(
    model: PreparedModel,
    ctx: ContextParams,
    placement: Placement,
    *,
    reserve: Reserve = "server",
    whole_graph: bool = False,
    simd: frozenset[str] = frozenset({"avx2"}),
    driver: Sequence[DriverContext] = (),
    extras: Sequence[ExtraModel] = (),
) -> MemoryEstimate:
    """Every device's memory.

    `reserve` says whose rule for logits: the server's, or llama-fit-params' (the whole micro-batch). `whole_graph`
    plays every layer through the allocator instead of a few that stand for all: some ten milliseconds for now and
    then a MiB. `driver` is what each GPU's driver takes; `simd` the host's CPU features, for repacked weights.
    """
    facts = model.facts
    backends, layer_devices = _place(model, placement)
    n_backends = len(placement.devices) + 1
    repacks = simd if not placement.devices and reserve == "server" else frozenset[str]()
    weights = _weigh(model, placement, backends, n_backends, simd if not placement.devices else frozenset())
    cache_backends = layer_devices if ctx.kv_offload else [n_backends - 1] * len(layer_devices)
    context = context_bytes(facts.layers, ctx=ctx, n_swa=facts.n_swa, arch=facts.arch, backends=cache_backends,
                            n_backends=n_backends, sizes=model.kv_sizes)  # fmt: skip
    compute, known = _compute(model, ctx, placement, backends, cache_backends, reserve, whole_graph)
    output = facts.n_vocab * LOGIT_BYTES * ctx.n_outputs if reserve == "server" else 0
    devices = [
        DeviceMemory(
            name=name, model_bytes=weights.by_backend[i], context_bytes=context[i], compute_bytes=compute[i],
            overhead_bytes=driver[i].planned_bytes if i < len(driver) else 0, extra_bytes=_extra(extras, name),
        )
        for i, name in enumerate(placement.devices)
    ]  # fmt: skip
    repacked = weights.repacked_bytes if repacks else 0
    twice = weights.duplicated_bytes if reserve == "fit-params" and facts.arch in _HEAD_FIRST else 0
    host = DeviceMemory(
        name=HOST, model_bytes=weights.resident_bytes + repacked + twice,
        context_bytes=context[-1], compute_bytes=compute[-1],
        output_bytes=output, extra_bytes=_extra(extras, HOST), mapped_bytes=weights.mapped_bytes,
        repacked_bytes=repacked, prompt_cache_bytes=max(ctx.cache_ram_bytes, 0) if reserve == "server" else 0,
    )  # fmt: skip
    return MemoryEstimate(devices=(*devices, host), origin=Origin.CALCULATED, reserve=reserve, compute_known=known,
                          warnings=_warnings(facts, ctx, known))  # fmt: skip


def _extra(extras: Sequence[ExtraModel], device: str) -> int:
    return sum(e.model_bytes + e.context_bytes + e.compute_bytes for e in extras if e.device == device)


def _warnings(facts: ModelFacts, ctx: ContextParams, known: bool) -> tuple[str, ...]:
    said = list(facts.warnings)
    if facts.n_ctx_train and ctx.n_cells > pad(facts.n_ctx_train, 256):
        said.append(f"a slot's context of {ctx.n_cells:,} is longer than the {facts.n_ctx_train:,} it was trained for")
    if facts.arch in UNMODELLED:
        said.append(f"the context memory of {facts.arch} is not modelled: what is shown is a lower bound")
    if not known:
        said.append(f"the compute buffers of {facts.arch} are not modelled: what is shown is a range's lower end")
    return tuple(dict.fromkeys(said))


def _place(model: PreparedModel, placement: Placement) -> tuple[list[int], list[int]]:
    """The backend of each tensor, and of each layer with the head at the end."""
    known = model.placed.get(placement)
    if known is None:
        host = len(placement.devices)
        layers = placement.layer_devices(model.facts.n_layer)
        index = {name: i for i, name in enumerate(placement.devices)} | {"CPU": host}
        backends = []
        for part in model.parts:
            to = host if part.layer is None else layers[min(part.layer, model.facts.n_layer)]
            named = placement.override_of(part.name) if placement.has_overrides else None
            backends.append(index[named] if named is not None else to)
        known = model.placed[placement] = (backends, layers)
    return known


def _weigh(
    model: PreparedModel, placement: Placement, backends: Sequence[int], n_backends: int, simd: frozenset[str]
) -> Weights:
    key = (placement, simd)
    known = model.weighed.get(key)
    if known is None:
        known = model.weighed[key] = weight_bytes(model.parts, backends, n_backends=n_backends, simd=simd)
    return known


def reservations(model: PreparedModel, ctx: ContextParams, placement: Placement, reserve: Reserve) -> list[Reservation]:
    """The graphs whose peaks make the buffers (llama_context::sched_reserve): a whole micro-batch, and for the server
    also one token a slot. llama-fit-params sizes only the first, with logits for all its tokens."""
    facts = model.facts
    n_seqs = ctx.n_slots
    asked = min(ctx.n_ubatch_effective, ctx.n_cells * ctx.n_stream)
    n_tokens = pad(asked, n_seqs)
    quantized = {kind: model.kv_sizes[kind][0] > 1 for kind in (ctx.type_k, ctx.type_v)}
    n_outputs = min(asked, ctx.n_outputs) if reserve == "server" else min(asked, ctx.n_batch, ctx.n_ctx)
    whole = GraphParams(
        n_tokens=n_tokens, n_seqs=n_seqs, n_outputs=n_outputs, n_kv=ctx.n_cells,
        n_kv_swa=ctx.n_cells_swa(facts.n_swa) if facts.n_swa else 0, n_stream=ctx.n_stream, flash_attn=ctx.flash_attn,
        type_k=ctx.type_k, type_v=ctx.type_v, n_rs=n_seqs, rotates_k=quantized[ctx.type_k],
        rotates_v=quantized[ctx.type_v], kv_elements=model.kv_sizes,
        pin_attention=-1 if ctx.kv_offload else len(placement.devices),
    )  # fmt: skip
    all_layers = placement.n_gpu_layers is None or placement.n_gpu_layers > facts.n_layer
    pipeline = len(placement.devices) > 1 and all_layers and ctx.kv_offload and not placement.has_overrides
    reserved = [Reservation(params=whole, pipeline=pipeline)]
    if reserve == "server" and not (n_tokens >= _DOMINATES * n_seqs or (all_layers and not placement.has_overrides)):
        reserved.append(Reservation(params=replace(whole, n_tokens=n_seqs, n_outputs=n_seqs), pipeline=pipeline))
    return reserved


def _compute(
    model: PreparedModel,
    ctx: ContextParams,
    placement: Placement,
    backends: Sequence[int],
    cache_backends: Sequence[int],
    reserve: Reserve,
    whole: bool,
) -> tuple[list[int], bool]:
    n_backends = len(placement.devices) + 1
    if model.facts.arch in UNMODELLED or model.facts.arch in NO_MEMORY:
        return _lower_bound(model, ctx, n_backends), False
    layout = model.layouts.get((placement, ctx.kv_offload, whole))
    if layout is None:
        layout = layout_of(
            model.graphs, backends=backends, cache_backends=cache_backends, n_backends=n_backends, whole=whole
        )
        model.layouts[placement, ctx.kv_offload, whole] = layout
    peaks = [0] * n_backends
    try:
        for reservation in reservations(model, ctx, placement, reserve):
            found = compute_bytes(model.graphs, reservation, layout)
            peaks = [max(a, b) for a, b in zip(peaks, found, strict=True)]
    except (KeyError, IndexError):  # a tensor that this kind of network should have is not there
        return _lower_bound(model, ctx, n_backends), False
    known = model.facts.arch in KNOWN_ARCHITECTURES and model.facts.arch not in PARTLY_BUILT
    return [
        max(a, b) for a, b in zip(peaks, _lower_bound(model, ctx, n_backends), strict=True)
    ] if not known else peaks, known


def _lower_bound(model: PreparedModel, ctx: ContextParams, n_backends: int) -> list[int]:
    """Where the graph is unknown: the inputs, and one feed-forward's three rows at a time."""
    n_tokens = ctx.n_ubatch_effective
    widths = [part.ne[1] for part in model.parts if "ffn_up" in part.name and len(part.ne) == 2]
    mask = n_tokens * ctx.n_cells * (2 if ctx.flash_attn else 4)
    rows = n_tokens * 4 * (3 * max(widths, default=model.facts.n_embd) + 3 * model.facts.n_embd)
    return [rows + mask] * (n_backends - 1) + [mask + 2 * n_tokens * 4 * model.facts.n_embd]
