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
from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import HOST, DeviceMemory, PreparedModel, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import FactsOrigin, ModelFacts, SourceFacts, TensorFacts
from quantplan.places import data_file
from quantplan.planner.plan import Context, make_plan
from quantplan.planner.request import Capacity, PlanRequest, Setting
from quantplan.planner.search import Found, MemoryOf, search
from quantplan.rehearsal.ask import repack_features
from quantplan.units import GIB, MIB

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


def recommend(facts: ModelFacts, host: HostFacts, request: PlanRequest, *, as_it_is: str | None = None) -> Planned:
    """The plan of a model on a host, with its alternatives. `as_it_is` is the preset of a finished file, which is
    planned for and no other. Raises DoesNotFit, BadValue."""
    own = as_it_is or own_preset(facts)
    request = replace(request, quants=(own,) if own is not None else buildable(facts, request.quants))
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
    planned = recommend(facts, host, PlanRequest(), as_it_is=quant)
    return replace(planned.plan, source={**planned.plan.source, "file": file.name})


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
            bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s, bandwidth_is_measured=gpu.bandwidth_source == "measured",
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


MIXTURE_PRESET = "MXFP4_MOE"  # keeps experts that are MXFP4 in the source as they are


def buildable(facts: ModelFacts, quants: tuple[str, ...]) -> tuple[str, ...]:
    """The presets that llama-quantize makes of this source: what is quantized there already is not quantized again.

    Raises BadValue when none is left.
    """
    from quantplan.errors import BadValue
    from quantplan.model import catalog
    from quantplan.quant.presets import apply_preset

    entry = catalog.find(facts.id) if facts.origin is FactsOrigin.CATALOG else None
    if entry is not None and entry.only_presets:
        return entry.only_presets
    if all(tensor.type_name in ("F32", "F16", "BF16") for tensor in facts.tensors):
        return quants
    tried = dict.fromkeys((*quants, MIXTURE_PRESET))
    good = tuple(q for q in tried if not apply_preset(facts.tensors, facts.metadata, q).requantized)
    if not good:
        why = "would quantize again what is quantized in the source, which llama-quantize refuses"
        raise BadValue(what="presets", value=", ".join(tried), why=why)
    return good


def memory_of(facts: ModelFacts, host: HostFacts, own: str | None) -> MemoryOf:
    """Memory of a candidate, with everything that does not depend on it worked out once a preset."""
    driver = [driver_context(gpu.product) for gpu in host.gpus]
    simd = repack_features(host)

    @cache
    def prepared(quant: str) -> PreparedModel:
        return prepare(facts, _tensors_at(facts, quant, own))

    @cache
    def needs(setting: Setting) -> tuple[DeviceMemory, ...]:
        ctx = ContextParams(
            n_ctx=setting.n_ctx * setting.n_parallel, n_batch=setting.n_batch, n_ubatch=setting.n_ubatch,
            n_parallel=setting.n_parallel, kv_unified=setting.kv_unified, type_k=setting.type_k.upper(),
            type_v=setting.type_v.upper(), flash_attn=setting.flash_attn != "off", cache_ram_bytes=0,
        )  # fmt: skip
        gpus = host.gpus if setting.n_gpu_layers else ()
        placement = Placement(
            devices=tuple(gpu.name for gpu in gpus), n_gpu_layers=setting.n_gpu_layers if gpus else None,
            free_bytes=tuple(gpu.free_bytes for gpu in gpus) or None,
        )  # fmt: skip
        return estimate_memory(prepared(setting.quant), ctx, placement, simd=simd, driver=driver).devices

    return needs


def _tensors_at(facts: ModelFacts, quant: str, own: str | None) -> tuple[TensorFacts, ...]:
    if own is not None:
        return facts.tensors
    from quantplan.quant.presets import apply_preset

    return apply_preset(facts.tensors, facts.metadata, quant).tensors
