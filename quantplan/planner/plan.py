"""From a choice to the plan that build, serve and export are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Figure, Margin, Plan, PlannedDevice, Quality
from quantplan.llama import commands
from quantplan.memory.estimate import HOST
from quantplan.planner.request import Capacity, PlanRequest
from quantplan.planner.search import Choice
from quantplan.units import MIB

SERVER_PORT = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a plan says beside the choice. `published` are the figures of data/published_figures.json."""

    model: str
    source: Mapping[str, Any]
    request: PlanRequest
    capacities: tuple[Capacity, ...]
    n_threads: int
    host_fingerprint: str
    made_at: str
    published: Mapping[str, Any]


def make_plan(choice: Choice, context: Context) -> Plan:
    """The whole plan of a choice; figures nobody measured or published stay None."""
    setting = choice.setting
    capacities = {capacity.name: capacity for capacity in context.capacities}
    gpus = [capacity for capacity in context.capacities if capacity.name != HOST]
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
        tensor_split=_split(gpus) if setting.n_gpu_layers else (),
        n_cpu_moe=0,
        override_tensor=(),
        threads=context.n_threads,
        threads_batch=context.n_threads,
        numa=None,
        cpu_range=None,
        cache_ram_bytes=context.request.cache_ram_bytes,
        load_mode="mmap",
        mmproj=None,
        draft=None,
        memory=tuple(_device(need, capacities.get(need.name)) for need in choice.needs),
        decode_tokens_per_s=_decode(choice, gpus, context.published),
        prefill_tokens_per_s=None,
        quality=_quality(setting.quant, context.published),
        margin=tuple(
            Margin(device=capacity.name, bytes=capacity.margin_bytes, why=capacity.margin_why)
            for capacity in context.capacities
        ),
        argv=(),
        host_fingerprint=context.host_fingerprint,
        made_at=context.made_at,
    )
    return _with_argv(plan)


def _split(gpus: Sequence[Capacity]) -> tuple[float, ...]:
    """Shares in GiB of usable memory, to two decimals, where there is more than one device."""
    if len(gpus) < 2:
        return ()
    return tuple(round(gpu.usable_bytes / 1024**3, 2) for gpu in gpus)


def _device(need: Any, capacity: Capacity | None) -> PlannedDevice:
    return PlannedDevice(
        name=need.name,
        model_bytes=need.model_bytes,
        context_bytes=need.context_bytes,
        compute_bytes=need.compute_bytes,
        output_bytes=need.output_bytes,
        overhead_bytes=need.overhead_bytes,
        capacity_bytes=capacity.capacity_bytes if capacity else None,
        free_bytes=capacity.free_bytes if capacity else None,
    )


def _decode(choice: Choice, gpus: Sequence[Capacity], published: Mapping[str, Any]) -> Figure | None:
    """Whole on one GPU of known bandwidth, dense: bandwidth × published utilisation / bytes read a token."""
    figures = published["utilisation"]
    share = figures["by_preset"].get(choice.setting.quant)
    device = next((need for need in choice.needs if gpus and need.name == gpus[0].name), None)
    host = next((need for need in choice.needs if need.name == HOST), None)
    whole = device is not None and (host is None or host.context_bytes == 0)
    bandwidth = gpus[0].bandwidth_bytes_per_s if len(gpus) == 1 else None
    if not (share and whole and bandwidth and device and device.model_bytes):
        return None
    # A measured bandwidth is what 16 bit gets: the preset's share is then relative to that of 16 bit.
    whole_share = figures["by_preset"]["F16"]["value"] if gpus[0].bandwidth_is_measured else 1.0
    per_second = bandwidth / device.model_bytes / whole_share
    return Figure(
        value=round(per_second * share["value"], 1),
        low=round(per_second * share["low"], 1),
        high=round(per_second * share["high"], 1),
        origin=f"calculated: memory bandwidth over bytes a token; {figures['source']}",
    )


def _quality(quant: str, published: Mapping[str, Any]) -> Quality | None:
    figures = published["quality"]
    found = figures["by_preset"].get(quant)
    if not found:
        return None
    origin = f"published for {figures['model']}, not for this model: {figures['source']}"
    return Quality(kld_mean=found["kld_mean"], ppl_ratio=None, low=None, high=None, origin=origin)


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
        api_key_file=api_key_file,
    )


def _with_argv(plan: Plan) -> Plan:
    file = Path(f"{plan.model.rsplit('/', 1)[-1]}-{plan.quant}.gguf")
    return replace(plan, argv=commands.server(("llama-server",), server_settings(plan, model=file)))
