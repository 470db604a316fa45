"""The search's instruments for one model on one host: exact memory, predicted speed, expected quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from quantplan.artifact.plan_file import Figure, Quality
from quantplan.hardware.facts import HostFacts
from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import (
    HOST,
    DeviceMemory,
    ExtraModel,
    PreparedModel,
    estimate_memory,
    loaded_parts,
    prepare,
)
from quantplan.memory.flash import flash_attention_works, is_latent
from quantplan.memory.placement import DRAFT_TOKENS, ContextParams, Placement
from quantplan.memory.weights import Part
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.planner.instruments import Instruments
from quantplan.planner.outline import Outline, outline_of
from quantplan.planner.request import Capacity, Setting
from quantplan.planner.speed import PreparedSpeed, Speed, SpeedHost, predict, predict_values, prepare_speed
from quantplan.rehearsal.ask import repack_features
from quantplan.units import GIB, MIB

GPU_MARGIN_BYTES = 256 * MIB
HOST_MARGIN_BYTES = GIB
UNKNOWN_DAMAGE = 1.0  # nats: a preset that nobody measured counts as worse than any that was
_PLAIN = ("f32", "f16", "bf16")
_KV_BLOCK = 32  # elements: src/llama-context.cpp refuses quantized caches whose heads it does not divide


@dataclass(slots=True)
class ModelOnHost:
    """One model on one host, with everything kept that was worked out once."""

    facts: ModelFacts
    host: HostFacts
    speeds: SpeedHost
    quality_of: Callable[[str], Quality | None]
    objection: Callable[[str], str | None]
    own: str | None = None  # the preset of a finished file
    extras: Sequence[ExtraModel] = ()
    draft: ModelFacts | None = None
    prepared: dict[str, PreparedModel] = field(default_factory=dict)
    outlines: dict[str, Outline] = field(default_factory=dict)
    timed: dict[str, PreparedSpeed] = field(default_factory=dict)
    kept: dict[Setting, tuple[DeviceMemory, ...]] = field(default_factory=dict)
    tensors: dict[str, tuple[TensorFacts, ...]] = field(default_factory=dict)
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    warnings: dict[Setting, tuple[str, ...]] = field(default_factory=dict)
    drafts: dict[tuple[int, str], tuple[ExtraModel, ...]] = field(default_factory=dict)
    flash: bool = True

    def __post_init__(self) -> None:
        self.flash = not self.host.gpus or flash_attention_works(self.facts.layers)

    def share(self, other: ModelOnHost) -> None:
        """Takes over what was worked out of the same model on another host and depends on no host."""
        self.tensors, self.parts, self.prepared = other.tensors, other.parts, other.prepared
        self.outlines, self.timed = other.outlines, other.timed

    def instruments(self, capacities: tuple[Capacity, ...], *, free_disk_bytes: int | None = None) -> Instruments:
        """What the search asks."""
        facts = self.facts
        share = facts.n_expert_used / facts.n_expert if facts.n_expert else 1.0
        return Instruments(
            n_layer=facts.n_layer, n_ctx_train=facts.n_ctx_train, expert_share=share, capacities=capacities,
            outline_of=self.outline, context_of=self.context, memory_of=self.memory, speed_of=self.speed,
            damage_of=self.damage, objection=self.objection, free_disk_bytes=free_disk_bytes, own=self.own,
        )  # fmt: skip

    def tensors_at(self, quant: str) -> tuple[TensorFacts, ...]:
        if self.own is not None:
            return self.facts.tensors
        known = self.tensors.get(quant)
        if known is None:
            from quantplan.quant.presets import apply_preset

            known = self.tensors[quant] = apply_preset(self.facts.tensors, self.facts.metadata, quant).tensors
        return known

    def parts_at(self, quant: str) -> tuple[Part, ...]:
        known = self.parts.get(quant)
        if known is None:
            known = self.parts[quant] = loaded_parts(self.facts, self.tensors_at(quant))
        return known

    def model(self, quant: str) -> PreparedModel:
        known = self.prepared.get(quant)
        if known is None:
            known = self.prepared[quant] = prepare(self.facts, parts=self.parts_at(quant))
        return known

    def outline(self, quant: str) -> Outline:
        known = self.outlines.get(quant)
        if known is None:
            known = self.outlines[quant] = outline_of(self.model(quant))
        return known

    def context(self, setting: Setting) -> ContextParams:
        """The context as the server makes it: slots of n_ctx each share one pool."""
        return ContextParams(
            n_ctx=setting.n_ctx * setting.n_parallel, n_batch=setting.n_batch, n_ubatch=setting.n_ubatch,
            n_parallel=setting.n_parallel, kv_unified=setting.kv_unified, type_k=setting.type_k.upper(),
            type_v=setting.type_v.upper(), flash_attn=self.flash, cache_ram_bytes=0,
            n_outputs_per_slot=1 + DRAFT_TOKENS if self.draft else 1,
        )  # fmt: skip

    def placement(self, setting: Setting) -> Placement:
        return Placement(
            devices=setting.devices, n_gpu_layers=setting.n_gpu_layers if setting.devices else None,
            tensor_split=tuple(float(count) for count in setting.tensor_split) or None, n_cpu_moe=setting.n_cpu_moe,
        )  # fmt: skip

    def memory(self, setting: Setting) -> tuple[DeviceMemory, ...]:
        """The exact model's word, companions included."""
        known = self.kept.get(setting)
        if known is None:
            products = {gpu.name: gpu.product for gpu in self.host.gpus}
            found = estimate_memory(
                self.model(setting.quant), self.context(setting), self.placement(setting),
                simd=repack_features(self.host), driver=[driver_context(products[name]) for name in setting.devices],
                extras=self._extras(setting),
            )  # fmt: skip
            known = self.kept[setting] = found.devices
            self.warnings[setting] = found.warnings
        return known

    def said(self, setting: Setting) -> tuple[str, ...]:
        """What the memory model warns of, beside what the facts do."""
        self.memory(setting)
        return tuple(one for one in self.warnings[setting] if one not in self.facts.warnings)

    def _extras(self, setting: Setting) -> Sequence[ExtraModel]:
        """Companions load on the first GPU, or on the host where none is used. A draft's context is the model's."""
        first = setting.devices[0] if setting.devices else HOST
        files = tuple(replace(extra, device=first) for extra in self.extras)
        if self.draft is None:
            return files
        key = (setting.n_ctx * setting.n_parallel, first)
        known = self.drafts.get(key)
        if known is None:
            known = self.drafts[key] = draft_memory(
                self.draft, n_ctx=key[0], n_parallel=setting.n_parallel, device=first
            )
        return (*files, *known)

    def speed(self, setting: Setting, n_depth: int, n_active: int) -> tuple[float, float]:
        """Decode of all active slots and prefill, tokens a second; 0 where unknown."""
        ctx, placement = self.context(setting), self.placement(setting)
        return predict_values(self._timed(setting.quant), ctx, placement, self.speeds, n_depth=n_depth,
                              n_active=n_active)  # fmt: skip

    def figures(self, setting: Setting, n_depth: int) -> Speed:
        """Decode of one request and prefill, with their ranges."""
        return predict(self._timed(setting.quant), self.context(setting), self.placement(setting), self.speeds,
                       n_depth=n_depth)  # fmt: skip

    def _timed(self, quant: str) -> PreparedSpeed:
        known = self.timed.get(quant)
        if known is None:
            known = self.timed[quant] = prepare_speed(self.facts, parts=self.parts_at(quant))
        return known

    def damage(self, quant: str) -> float:
        """Expected mean KL divergence in nats."""
        found = self.quality_of(quant)
        return UNKNOWN_DAMAGE if found is None or found.kld_mean is None else found.kld_mean

    def cache_types(self, asked: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Of the asked cache types those that this model can have on this host."""
        heads = [n for layer in self.facts.layers if layer.has_kv and layer.n_head_kv
                 for n in (layer.n_embd_head_k, layer.n_embd_head_v) if n]  # fmt: skip
        whole = all(n % _KV_BLOCK == 0 for n in heads)
        latent = any(is_latent(layer) for layer in self.facts.layers)

        def works(k: str, v: str) -> bool:
            if (k not in _PLAIN or v not in _PLAIN) and not whole:
                return False
            return (self.flash or v in _PLAIN) and (not latent or k == v)

        good = tuple((k, v) for k, v in asked if works(k, v))
        return good[:1] if not heads else good  # without a cache its type makes no difference


def draft_memory(draft: ModelFacts, *, n_ctx: int, n_parallel: int, device: str) -> tuple[ExtraModel, ...]:
    """What a draft takes as it is: its weights, a context as long as the model's in f16, its compute buffers."""
    ctx = ContextParams(n_ctx=n_ctx, n_parallel=n_parallel, kv_unified=n_parallel > 1, cache_ram_bytes=0)
    found = estimate_memory(prepare(draft), ctx, Placement(devices=() if device == HOST else (device,)))
    return tuple(
        ExtraModel(name=f"draft {draft.id}", device=one.name, model_bytes=one.model_bytes,
                   context_bytes=one.context_bytes, compute_bytes=one.compute_bytes + one.output_bytes)
        for one in found.devices
    )  # fmt: skip


def capacities_of(
    host: HostFacts, *, margins: dict[str, int] | None = None, extras: Sequence[ExtraModel] = ()
) -> tuple[Capacity, ...]:  # fmt: skip
    """What each device offers to a plan, and what of it stays free, with the reason. Margins by device name, or for
    all GPUs under "GPU"."""
    given = margins or {}
    gpus = [
        Capacity(
            name=gpu.name, capacity_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes,
            margin_bytes=given.get(gpu.name, given.get("GPU", GPU_MARGIN_BYTES)),
            margin_why="as asked" if gpu.name in given or "GPU" in given
            else "other programs on this card; the driver's own context is counted in the plan",
            taken_bytes=driver_context(gpu.product).planned_bytes + _extra(extras, gpu.name), unified=gpu.unified,
        )
        for gpu in host.gpus
    ]  # fmt: skip
    ram = Capacity(
        name=HOST, capacity_bytes=host.ram.total_bytes, free_bytes=host.ram.available_bytes,
        margin_bytes=given.get(HOST, HOST_MARGIN_BYTES),
        margin_why="as asked" if HOST in given else "the operating system and other programs",
        taken_bytes=_extra(extras, HOST),
    )  # fmt: skip
    return (*gpus, ram)


def _extra(extras: Sequence[ExtraModel], device: str) -> int:
    return sum(e.model_bytes + e.context_bytes + e.compute_bytes for e in extras if e.device == device)


def full_depth(
    figures: Callable[[Setting, int], Speed], *, generates: bool = True
) -> Callable[[Setting], tuple[Figure | None, Figure | None]]:
    """Speed with the context full to its end, which is the slowest a request gets; what does not generate has no
    decode."""

    def of(setting: Setting) -> tuple[Figure | None, Figure | None]:
        found = figures(setting, setting.n_ctx)
        return found.decode if generates else None, found.prefill

    return of
