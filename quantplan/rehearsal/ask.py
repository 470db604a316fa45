"""What a model needs on a host: read, quantize on paper, place, sum up, compare with what is free, ask the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantplan.errors import BadValue
from quantplan.hardware.facts import HostFacts
from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import (
    HOST,
    DriverContext,
    ExtraModel,
    MemoryEstimate,
    Reserve,
    estimate_memory,
    prepare,
)  # fmt: skip
from quantplan.memory.flash import flash_attention_works, is_latent
from quantplan.memory.placement import DEFAULT_CACHE_RAM_BYTES, DRAFT_TOKENS, ContextParams, Placement
from quantplan.model.facts import FactsOrigin, ModelFacts, TensorFacts
from quantplan.rehearsal.companions import Companions
from quantplan.rehearsal.remedies import DeviceRoom, Remedy, fits_in, remedies_for
from quantplan.rehearsal.speed_answer import SpeedAnswer, speed_of

ALL_IDIOMS = (99, 999, 9999)  # what people write for "every layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. None means what llama-server would do; `assumed` of the answer says what that was."""

    quant: str | None = None
    n_ctx: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int | None = None
    kv_unified: bool | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"  # on | off | auto
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] | None = None
    n_cpu_moe: int = 0
    cpu_moe: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    cache_ram_bytes: int | None = None
    swa_full: bool = False
    mmproj: Path | None = None
    draft: str | None = None
    lora: tuple[Path, ...] = ()
    reserve: Reserve = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Memory against room, and what to change when it does not fit. `measured` is the engine's word, if asked."""

    facts: ModelFacts
    quant: str
    ctx: ContextParams
    placement: Placement
    memory: MemoryEstimate
    rooms: tuple[DeviceRoom, ...]
    fits: bool
    assumed: tuple[str, ...]
    remedies: tuple[Remedy, ...] = ()
    warnings: tuple[str, ...] = ()
    measured: MemoryEstimate | None = None
    tensors: tuple[TensorFacts, ...] = field(default=(), repr=False)
    companions: Companions = field(default_factory=Companions)
    speed: SpeedAnswer | None = None

    def short_bytes(self, name: str) -> int:
        """What a device lacks (above 0), or has to spare (below 0)."""
        room = next(r for r in self.rooms if r.name == name)
        return self.memory.device(name).total_bytes - (room.free_bytes or 0) if room.free_bytes is not None else 0

    def to_json(self) -> dict[str, object]:
        """The contract: `devices`, `fits`, `origin`, `engine_build`."""
        rooms = {room.name: room for room in self.rooms}
        shown = self.measured or self.memory
        return {
            "model": self.facts.id, "arch": self.facts.arch, "quant": self.quant, "facts_origin": self.facts.origin,
            "n_ctx": self.ctx.n_ctx, "n_ctx_per_slot": self.ctx.n_cells, "n_parallel": self.ctx.n_slots,
            "kv_unified": self.ctx.unified, "n_gpu_layers": self.placement.n_gpu_layers, "as": shown.reserve,
            "fits": self.fits, "origin": shown.origin, "engine_build": shown.engine_build,
            "compute_known": shown.compute_known, "devices": [_device(d, rooms) for d in shown.devices],
            "calculated": [_device(d, rooms) for d in self.memory.devices] if self.measured else None,
            "assumed": list(self.assumed), "remedies": [{"what": r.what, "value": r.value} for r in self.remedies],
            "speed": self.speed,
        }  # fmt: skip


def _device(memory: object, rooms: Mapping[str, DeviceRoom]) -> dict[str, object]:
    from quantplan.memory.estimate import DeviceMemory

    assert isinstance(memory, DeviceMemory)
    room = rooms.get(memory.name)
    return {
        "name": memory.name, "model_bytes": memory.model_bytes, "context_bytes": memory.context_bytes,
        "compute_bytes": memory.compute_bytes, "output_bytes": memory.output_bytes,
        "overhead_bytes": memory.overhead_bytes, "extra_bytes": memory.extra_bytes,
        "total_bytes": memory.total_bytes, "mapped_bytes": memory.mapped_bytes,
        "repacked_bytes": memory.repacked_bytes, "prompt_cache_bytes": memory.prompt_cache_bytes,
        "ready_anonymous_bytes": memory.ready_anonymous_bytes,
        "capacity_bytes": room.capacity_bytes if room else None, "free_bytes": room.free_bytes if room else None,
    }  # fmt: skip


def answer(facts: ModelFacts, host: HostFacts, question: Question, *, draft: ModelFacts | None = None) -> Answer:
    """Memory of one configuration on one host. Raises BadValue for what cannot be."""
    assumed: list[str] = []
    quant, tensors = _tensors(facts, question, assumed)
    prepared = prepare(facts, tensors)
    placement = _placement(facts, host, question, assumed)
    ctx = _context(facts, host, question, assumed)
    rooms = _rooms(host)
    drivers = tuple(driver_context(gpu.product) for gpu in host.gpus)
    extras = _extras(question, host, draft, ctx)

    def memory_of(one: ContextParams, where: Placement, *, whole: bool = False) -> MemoryEstimate:
        return estimate_memory(
            prepared, one, where, reserve=question.reserve, whole_graph=whole, simd=repack_features(host),
            driver=_drivers(drivers, where, question), extras=extras,
        )  # fmt: skip

    memory = memory_of(ctx, placement, whole=True)
    fits = fits_in(memory, rooms)
    remedies = () if fits else remedies_for(prepared.facts.n_layer, ctx, placement, rooms, memory_of)
    return Answer(
        facts=facts, quant=quant, ctx=ctx, placement=placement, memory=memory, rooms=rooms, fits=fits,
        assumed=tuple(assumed), remedies=remedies, warnings=(*memory.warnings, *_cache_warning(memory, rooms)),
        tensors=tensors, companions=Companions(mmproj=question.mmproj, lora=question.lora, draft=draft),
    )  # fmt: skip


def _tensors(facts: ModelFacts, question: Question, assumed: list[str]) -> tuple[str, tuple[TensorFacts, ...]]:
    if question.quant is None:
        as_it_is = facts.origin is FactsOrigin.GGUF_HEADER
        assumed.append("weights as the file has them" if as_it_is else "weights in bf16, as the converter writes them")
        return ("as it is" if as_it_is else "BF16"), facts.tensors
    from quantplan.quant.presets import apply_preset

    result = apply_preset(facts.tensors, facts.metadata, question.quant)
    return result.preset, result.tensors


def _placement(facts: ModelFacts, host: HostFacts, question: Question, assumed: list[str]) -> Placement:
    names = tuple(gpu.name for gpu in host.gpus)
    n_layers = question.n_gpu_layers
    if n_layers is not None and n_layers > facts.n_layer + 1 and n_layers not in ALL_IDIOMS:
        why = f"is more than the {facts.n_layer} layers and the head that {facts.id} has"
        raise BadValue(what="GPU layers", value=n_layers, why=why)
    if question.n_cpu_moe > facts.n_layer:
        why = f"is more than the {facts.n_layer} layers that {facts.id} has"
        raise BadValue(what="layers with experts on the CPU", value=question.n_cpu_moe, why=why)
    split = question.tensor_split
    if split is not None and len(split) != len(names):
        why = f"has {len(split)} shares for {len(names)} GPU(s)"
        raise BadValue(what="tensor split", value=",".join(f"{s:g}" for s in split), why=why)
    if names and n_layers is None:
        assumed.append("every layer on the GPU")
    elif not names and n_layers:
        assumed.append("no GPU here: every layer on the CPU")
    return Placement(
        devices=names, n_gpu_layers=n_layers, tensor_split=split, free_bytes=tuple(gpu.free_bytes for gpu in host.gpus),
        overrides=question.overrides, n_cpu_moe=question.n_cpu_moe, cpu_moe=question.cpu_moe,
    )  # fmt: skip


def _context(facts: ModelFacts, host: HostFacts, question: Question, assumed: list[str]) -> ContextParams:
    if question.n_ctx is None:
        assumed.append(f"the trained context of {facts.n_ctx_train:,} tokens")
    if question.n_parallel is None and question.reserve == "server":
        assumed.append("automatic slots: 4 that share one cache")
    n_parallel = 1 if question.n_parallel is None and question.reserve == "fit-params" else question.n_parallel
    flash = question.flash_attn == "on" or (
        question.flash_attn == "auto" and (not host.gpus or flash_attention_works(facts.layers))
    )
    if question.flash_attn == "auto":
        assumed.append(f"flash attention {'on' if flash else 'off'}")
    if question.type_k.lower() != question.type_v.lower() and any(is_latent(layer) for layer in facts.layers):
        why = f"differs from the K cache's {question.type_k}: {facts.id} keeps one latent for both"
        raise BadValue(what="V cache type", value=question.type_v, why=why)
    cache_ram = DEFAULT_CACHE_RAM_BYTES if question.cache_ram_bytes is None else question.cache_ram_bytes
    return ContextParams(
        n_ctx=facts.n_ctx_train if question.n_ctx is None else question.n_ctx, n_batch=question.n_batch,
        n_ubatch=question.n_ubatch, n_parallel=n_parallel, kv_unified=question.kv_unified,
        type_k=question.type_k.upper(), type_v=question.type_v.upper(), flash_attn=flash, swa_full=question.swa_full,
        cache_ram_bytes=cache_ram, n_outputs_per_slot=1 + DRAFT_TOKENS if question.draft else 1,
    )  # fmt: skip


def repack_features(host: HostFacts) -> frozenset[str]:
    """The CPU features that decide what is repacked."""
    found = set(host.cpu.simd)
    avx512 = {"avx512"} if any(name.startswith("avx512") for name in found) else set()
    return frozenset(({"avx2"} if "avx2" in found or avx512 or not found else set()) | avx512)


def _drivers(drivers: Sequence[DriverContext], placement: Placement, question: Question) -> Sequence[DriverContext]:
    return drivers if placement.devices and question.reserve == "server" else ()


def _rooms(host: HostFacts) -> tuple[DeviceRoom, ...]:
    gpus = [DeviceRoom(name=g.name, product=g.product, capacity_bytes=g.total_bytes, free_bytes=g.free_bytes)
            for g in host.gpus]  # fmt: skip
    ram = DeviceRoom(name=HOST, product=host.cpu.model or "RAM", capacity_bytes=host.ram.total_bytes,
                     free_bytes=host.ram.available_bytes)  # fmt: skip
    return (*gpus, ram)


def _cache_warning(memory: MemoryEstimate, rooms: Sequence[DeviceRoom]) -> tuple[str, ...]:
    host, room = memory.device(HOST), rooms[-1]
    if room.free_bytes is None or host.total_bytes + host.prompt_cache_bytes <= room.free_bytes:
        return ()
    limit = host.prompt_cache_bytes // 2**20
    return (f"the prompt cache may grow to {limit:,} MiB of host memory, which is not free",) if limit else ()


def _extras(
    question: Question, host: HostFacts, draft: ModelFacts | None, ctx: ContextParams
) -> tuple[ExtraModel, ...]:
    """Companions load where the first layers' device is: the first GPU, or the host."""
    device = host.gpus[0].name if host.gpus else HOST
    files = [("projector", question.mmproj)] if question.mmproj else []
    files += [("adapter", path) for path in question.lora]
    extras = [ExtraModel(name=f"{kind} {path.name}", device=device, model_bytes=_size(path))
              for kind, path in files if path is not None]  # fmt: skip
    if draft is not None:
        own = estimate_memory(prepare(draft), _draft_context(ctx), Placement(devices=tuple(g.name for g in host.gpus)),
                              simd=repack_features(host))  # fmt: skip
        extras += [
            ExtraModel(name=f"draft {draft.id}", device=d.name, model_bytes=d.model_bytes,
                       context_bytes=d.context_bytes, compute_bytes=d.compute_bytes + d.output_bytes)
            for d in own.devices
        ]  # fmt: skip
    return tuple(extras)


def _draft_context(ctx: ContextParams) -> ContextParams:
    """The draft's context is the model's, with cache types of its own: f16 (common/common.h, commit 0c1e570)."""
    return replace(ctx, type_k="F16", type_v="F16", n_outputs_per_slot=1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise BadValue(what="companion file", value=str(path), why="is not there") from None


def estimate(
    model: str,
    *,
    hardware: str | HostFacts | None = None,
    engine: bool = False,
    llama: Path | None = None,
    n_depth: int | None = None,
    n_prompt: int | None = None,
    **question: object,
) -> Answer:
    """Memory and speed of `model` on this host, or on the one named: the same as the command. `n_depth` is the context
    that the speed is of (default: all of it), `n_prompt` the prompt whose first token is timed; `question` are
    Question's fields.

    Raises UnknownModel, BadValue and whatever else reading the model raises.
    """
    from quantplan.hardware.detect import detect_host
    from quantplan.hardware.profiles import load_profile
    from quantplan.rehearsal.through_converter import read_any_model

    asked = Question(**question)  # type: ignore[arg-type]
    host = hardware if isinstance(hardware, HostFacts) else load_profile(hardware) if hardware else detect_host()
    draft = read_any_model(asked.draft) if asked.draft else None
    found = answer(read_any_model(model), host, asked, draft=draft)
    speed = speed_of(found.facts, found.tensors, found.ctx, found.placement, host, n_depth=n_depth, n_prompt=n_prompt)
    found = replace(found, speed=speed)
    return ask_engine(found, llama=llama) if engine else found


def ask_engine(found: Answer, *, llama: Path | None = None) -> Answer:
    """The same answer with the engine's word beside it. Raises CannotExpress, ToolMissing, DoesNotFit, HolesFilled."""
    from quantplan.errors import DoesNotFit
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.rehearsal.engine_word import ask_fit_params, ask_server, weightless_file

    tools = find_toolchain(explicit=llama)
    if found.placement.devices and tools.backend == "cpu":
        why = "is not seen by the tools here, which can only speak for what this host has"
        raise BadValue(what="device", value=found.placement.devices[0], why=why)
    server = found.memory.reserve == "server"
    for room in found.rooms if server else ():
        need = found.memory.device(room.name).total_bytes
        if room.free_bytes is not None and need > room.free_bytes:
            raise DoesNotFit(device=room.name, need_bytes=need, free_bytes=room.free_bytes, what="a real start")
    beside = found.companions
    with weightless_file(found.facts, found.tensors, synthetic=server and bool(beside)) as path:
        if server:
            word = ask_server(tools, path, found.ctx, found.placement, companions=beside)
            return replace(found, measured=word.memory)
        told = ask_fit_params(tools, path, found.ctx, found.placement, companions=beside)
    missing = [name for name in found.placement.devices if name not in {device.name for device in told.devices}]
    if missing:
        why = "is not seen by the tools here, which can only speak for what this host has"
        raise BadValue(what="device", value=missing[0], why=why)
    return replace(found, measured=told)
