"""From a choice to the plan that build, serve and export are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Figure, Margin, Plan, PlannedDevice, Quality
from quantplan.hardware.facts import CpuFacts
from quantplan.llama import commands
from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.planner import threads
from quantplan.planner.candidates import Choice
from quantplan.planner.request import Capacity, PlanRequest, Setting
from quantplan.units import MIB

SERVER_PORT = 8080
# common/common.h, cache_ram_mib of llama.cpp 0c1e570: what the server takes for its prompt cache unless told
USUAL_CACHE_RAM_BYTES = 8192 * MIB
_CACHE_RAM_STEP_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a plan says beside the choice. `speed` gives decode and prefill with ranges, `quality` the damage."""

    model: str
    n_layer: int
    source: Mapping[str, Any]
    request: PlanRequest
    capacities: tuple[Capacity, ...]
    cpu: CpuFacts
    host_fingerprint: str
    made_at: str
    speed: Callable[[Setting], tuple[Figure | None, Figure | None]]
    quality: Callable[[str], Quality | None]
    mmproj: str | None = None
    draft: str | None = None
    embeddings: bool = False


def make_plan(choice: Choice, context: Context) -> Plan:
    """The whole plan of a choice; figures that nobody measured or published stay None."""
    setting = choice.setting
    capacities = {capacity.name: capacity for capacity in context.capacities}
    gpus = tuple(capacity.name for capacity in context.capacities if capacity.name != HOST)
    chosen = threads.choose(context.cpu, weights_on_host=reads_host(setting, context.n_layer))
    decode, prefill = context.speed(setting)
    plan = Plan(
        model=context.model,
        quant=setting.quant,
        source=context.source,
        runtime="llama-server",
        n_ctx_per_slot=setting.n_ctx,
        n_parallel=setting.n_parallel,
        kv_unified=setting.kv_unified,
        type_k=setting.type_k,
        type_v=setting.type_v,
        flash_attn=setting.flash_attn,
        n_batch=setting.n_batch,
        n_ubatch=setting.n_ubatch,
        n_gpu_layers=setting.n_gpu_layers,
        tensor_split=tuple(float(count) for count in setting.tensor_split),
        n_cpu_moe=setting.n_cpu_moe,
        override_tensor=(),
        threads=chosen.n_threads,
        threads_batch=chosen.n_threads_batch,
        numa=chosen.numa,
        cpu_range=chosen.cpu_range,
        cache_ram_bytes=cache_ram(context.request, choice.needs, capacities),
        load_mode="mmap",
        mmproj=context.mmproj,
        draft=context.draft,
        memory=tuple(_device(need, capacities.get(need.name)) for need in choice.needs),
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        quality=context.quality(setting.quant),
        margin=tuple(
            Margin(device=capacity.name, bytes=capacity.margin_bytes, why=capacity.margin_why)
            for capacity in context.capacities
        ),
        argv=(),
        host_fingerprint=context.host_fingerprint,
        made_at=context.made_at,
        devices=None if setting.devices == gpus else setting.devices,
        embeddings=context.embeddings,
    )
    return _with_argv(plan)


def reads_host(setting: Setting, n_layer: int) -> bool:
    """Whether a token reads weights from RAM: the embedding's one row does not count."""
    return not setting.devices or setting.n_cpu_moe > 0 or setting.n_gpu_layers <= n_layer


def cache_ram(request: PlanRequest, needs: tuple[DeviceMemory, ...], capacities: Mapping[str, Capacity]) -> int:
    """Bytes for the server's prompt cache: as asked; else half of what RAM has left, at most the engine's usual."""
    if request.cache_ram_bytes is not None:
        return request.cache_ram_bytes
    host = capacities[HOST]
    used = sum(need.total_bytes for need in needs if need.name == HOST or capacities[need.name].unified)
    left = host.usable_bytes - used
    if request.max_ram_bytes is not None:
        left = min(left, request.max_ram_bytes - used)
    half = max(0, left) // 2 // _CACHE_RAM_STEP_BYTES * _CACHE_RAM_STEP_BYTES
    return min(USUAL_CACHE_RAM_BYTES, half)


def _device(need: DeviceMemory, capacity: Capacity | None) -> PlannedDevice:
    return PlannedDevice(
        name=need.name,
        model_bytes=need.model_bytes + need.extra_bytes,  # companions are weights of other models
        context_bytes=need.context_bytes,
        compute_bytes=need.compute_bytes,
        output_bytes=need.output_bytes,
        overhead_bytes=need.overhead_bytes,
        capacity_bytes=capacity.capacity_bytes if capacity else None,
        free_bytes=capacity.free_bytes if capacity else None,
    )


def server_settings(
    plan: Plan, *, model: Path, host: str = "127.0.0.1", port: int = SERVER_PORT, api_key_file: Path | None = None
) -> commands.ServerSettings:
    """The plan as llama-server is told it."""
    return commands.ServerSettings(
        model=model,
        alias=plan.model,
        host=host,
        port=port,
        n_ctx_per_slot=plan.n_ctx_per_slot,
        n_parallel=plan.n_parallel,
        kv_unified=plan.kv_unified,
        type_k=plan.type_k,
        type_v=plan.type_v,
        flash_attn=plan.flash_attn,
        n_batch=plan.n_batch,
        n_ubatch=plan.n_ubatch,
        n_gpu_layers=plan.n_gpu_layers,
        threads=plan.threads,
        threads_batch=plan.threads_batch,
        cache_ram_mib=plan.cache_ram_bytes // MIB,
        load_mode=plan.load_mode,
        tensor_split=plan.tensor_split,
        n_cpu_moe=plan.n_cpu_moe,
        override_tensor=plan.override_tensor,
        numa=plan.numa,
        cpu_range=plan.cpu_range,
        mmproj=Path(plan.mmproj) if plan.mmproj else None,
        draft=Path(plan.draft) if plan.draft else None,
        devices=plan.devices,
        embeddings=plan.embeddings,
        api_key_file=api_key_file,
    )


def _with_argv(plan: Plan) -> Plan:
    """The command as it is typed once the file is there."""
    own = plan.source.get("file")
    name = f"{plan.model.rsplit('/', 1)[-1]}-{plan.quant}.gguf"
    file = Path(str(own)) if own and str(own).endswith(".gguf") else Path(name)
    return replace(plan, argv=commands.server(("llama-server",), server_settings(plan, model=file)))
