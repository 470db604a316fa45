"""From a model's name and this host to a plan: the reading that the pure planner must not do."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Plan
from quantplan.hardware.facts import HostFacts
from quantplan.memory import outline
from quantplan.model.facts import FactsOrigin, ModelFacts, SourceFacts, TensorFacts
from quantplan.places import data_file
from quantplan.planner.plan import Context, make_plan
from quantplan.planner.request import Capacity, DeviceNeed, PlanRequest, Setting
from quantplan.planner.search import HOST, Found, MemoryOf, search
from quantplan.units import GIB, MIB

# nvidia-smi above idle minus the engine's buffers on an H200 (driver 580, CUDA 13.0), 129 starts: 595.5 to 600.05 MiB.
# Elsewhere 300 to 2,400 MiB was published.
DRIVER_CONTEXT_BYTES = 600 * MIB
GPU_MARGIN_BYTES = 256 * MIB
HOST_MARGIN_BYTES = GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Everything recommend shows."""

    facts: ModelFacts
    host: HostFacts
    found: Found
    plan: Plan
    alternatives: tuple[Plan, ...]


def recommend(facts: ModelFacts, host: HostFacts, request: PlanRequest) -> Planned:
    """The plan of a model on a host, with its alternatives. Raises DoesNotFit, BadValue."""
    own = own_preset(facts)
    if own is not None:
        request = replace(request, quants=(own,))
    capacities = capacities_of(host)
    found = search(
        request, n_layer=facts.n_layer, n_ctx_train=facts.n_ctx_train, capacities=capacities,
        memory_of=memory_of(facts, host, own),
    )  # fmt: skip
    context = Context(
        model=facts.id, source=_source(facts.source), request=request, capacities=capacities,
        n_threads=host.cpu.n_threads, host_fingerprint=host.fingerprint,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), published=published(),
    )  # fmt: skip
    plans = tuple(make_plan(choice, context) for choice in (found.choice, *found.alternatives))
    return Planned(facts=facts, host=host, found=found, plan=plans[0], alternatives=plans[1:])


def plan_file(file: Path, *, quant: str, host: HostFacts, name: str) -> Plan:
    """The plan of a finished GGUF on this host."""
    from quantplan.model.read import read_model

    facts = replace(read_model(str(file)), id=name)
    planned = recommend(facts, host, PlanRequest())
    source = {**planned.plan.source, "file": file.name}
    return replace(planned.plan, quant=quant, source=source)


def _source(source: SourceFacts) -> Mapping[str, Any]:
    return {"repo": source.repo, "revision": source.revision, "file": source.file, "sha256": source.sha256}


@cache
def published() -> Mapping[str, Any]:
    """Figures that others published, with their source."""
    told: Mapping[str, Any] = json.loads(data_file("published_figures.json").read_text())
    return told


def capacities_of(host: HostFacts) -> tuple[Capacity, ...]:
    """What each device offers to a plan, and what of it stays free, with the reason."""
    gpus = [
        Capacity(
            name=gpu.name, capacity_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes, margin_bytes=GPU_MARGIN_BYTES,
            margin_why="other programs on this card; the driver's own context is counted in the plan",
            bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
        )
        for gpu in host.gpus
    ]  # fmt: skip
    ram = Capacity(
        name=HOST, capacity_bytes=host.ram.total_bytes, free_bytes=host.ram.available_bytes,
        margin_bytes=HOST_MARGIN_BYTES, margin_why="the operating system and other programs",
        bandwidth_bytes_per_s=host.ram.bandwidth_bytes_per_s,
    )  # fmt: skip
    return (*gpus, ram)


def own_preset(facts: ModelFacts) -> str | None:
    """The preset a GGUF already has, or None where presets can still be chosen (16 and 32 bit)."""
    if facts.origin is not FactsOrigin.GGUF_HEADER:
        return None
    from quantplan.quant.presets import PRESETS

    number = facts.metadata.get("general.file_type")
    name = next((p.file_type for p in PRESETS.values() if p.file_type_id == number), None)
    return None if name in ("F16", "BF16", "F32") else name or "as it is"


def memory_of(facts: ModelFacts, host: HostFacts, own: str | None) -> MemoryOf:
    """Memory of a candidate, with everything that does not depend on it summed up once."""

    @cache
    def prepared(quant: str) -> outline.Prepared:
        return outline.prepare(facts, _tensors_at(facts, quant, own))

    def needs(setting: Setting) -> tuple[DeviceNeed, ...]:
        ctx = outline.ContextParams(
            n_ctx=setting.n_ctx, n_parallel=setting.n_parallel, n_ubatch=setting.n_ubatch, type_k=setting.type_k,
            type_v=setting.type_v,
        )  # fmt: skip
        return _needs(facts, host, prepared(setting.quant), ctx, setting)

    return needs


def _tensors_at(facts: ModelFacts, quant: str, own: str | None) -> tuple[TensorFacts, ...]:
    if own is not None:
        return facts.tensors
    from quantplan.quant.presets import apply_preset

    return apply_preset(facts.tensors, facts.metadata, quant).tensors


def _needs(
    facts: ModelFacts, host: HostFacts, prepared: outline.Prepared, ctx: outline.ContextParams, setting: Setting
) -> tuple[DeviceNeed, ...]:
    parts = outline.split_bytes(prepared, facts, ctx, setting.n_gpu_layers)
    compute, beside = outline.compute_bytes(facts, ctx)
    output = 4 * facts.n_vocab * setting.n_parallel
    on_gpu = bool(host.gpus) and setting.n_gpu_layers > 0
    ram = DeviceNeed(
        name=HOST, model_bytes=parts["host_model"], context_bytes=parts["host_context"],
        compute_bytes=beside if on_gpu else compute, output_bytes=output, overhead_bytes=setting_cache(setting),
    )  # fmt: skip
    if not on_gpu:
        return (ram,)
    total = sum(gpu.free_bytes for gpu in host.gpus) or 1
    gpus = [
        DeviceNeed(
            name=gpu.name, model_bytes=parts["device_model"] * gpu.free_bytes // total,
            context_bytes=parts["device_context"] * gpu.free_bytes // total, compute_bytes=compute, output_bytes=0,
            overhead_bytes=DRIVER_CONTEXT_BYTES,
        )
        for gpu in host.gpus
    ]  # fmt: skip
    return (*gpus, ram)


def setting_cache(_setting: Setting) -> int:
    """Bytes of the prompt cache: plans turn it off unless it is asked for."""
    return 0
