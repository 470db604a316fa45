"""From a model's name and this host to a plan: the reading that the pure planner must not do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.artifact.plan_file import Plan, Quality
from quantplan.cli.plan_tools import ModelOnHost, capacities_of, full_depth
from quantplan.hardware.facts import HostFacts
from quantplan.memory.estimate import ExtraModel
from quantplan.model.facts import FactsOrigin, ModelFacts, SourceFacts
from quantplan.planner import relax
from quantplan.planner.alternatives import alternatives
from quantplan.planner.candidates import Choice, Effort, Rejected, check
from quantplan.planner.instruments import Instruments
from quantplan.planner.instruments import contexts as contexts_of
from quantplan.planner.nature import Kind, Nature, nature_of
from quantplan.planner.plan import Context, make_plan
from quantplan.planner.request import USUAL_N_CTX, Capacity, Objective, PlanRequest
from quantplan.planner.search import Search
from quantplan.planner.speed import SpeedHost

if TYPE_CHECKING:
    from quantplan.quant.quality import OwnMeasurement, QualityTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What is loaded beside the model, and the names for the plan. `draft_least` is what a draft takes at the least
    context that the plan may have."""

    files: tuple[ExtraModel, ...] = ()
    draft_facts: ModelFacts | None = None
    draft_least: tuple[ExtraModel, ...] = ()
    mmproj: str | None = None
    draft: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Everything recommend shows."""

    facts: ModelFacts
    host: HostFacts
    request: PlanRequest
    choice: Choice
    others: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]
    plan: Plan
    alternatives: tuple[Plan, ...]
    capacities: tuple[Capacity, ...]
    effort: Effort
    seconds: float
    nature: Nature
    tools: Instruments = field(repr=False)
    model: ModelOnHost = field(repr=False)
    warnings: tuple[str, ...] = ()


def recommend(
    facts: ModelFacts, host: HostFacts, request: PlanRequest, *, as_it_is: str | None = None,
    margins: dict[str, int] | None = None, companions: Companions | None = None, with_alternatives: bool = True,
    with_changes: bool = True, speeds: SpeedHost | None = None, like: ModelOnHost | None = None,
) -> Planned:  # fmt: skip
    """The plan of a model on a host, with its alternatives. `as_it_is` is the preset of a finished file, which is
    planned for and no other. `with_changes`: a refusal says what would help. `speeds` are the host's, where they are
    known already, `like` is the model on another host, whose tables are used again. Raises NothingFits,
    Contradiction, BadValue."""
    check(request)
    nature = nature_of(facts)
    request = suited(request, facts, nature)
    beside = companions or Companions()
    own = as_it_is or own_preset(facts)
    model = model_on_host(facts, host, request, own=own, companions=beside, speeds=speeds)
    if like is not None:
        model.share(like)
    request = replace(
        request, quants=(own,) if own is not None else buildable(facts, request.quants),
        any_preset=request.any_preset or own is not None, kv_types=_cache_types(model, request),
    )  # fmt: skip
    capacities = capacities_of(host, margins=margins, extras=(*beside.files, *beside.draft_least))
    tools = model.instruments(capacities, free_disk_bytes=_free_disk(host, facts))
    search = Search(tools)
    started = time.process_time()
    best = search.best(request)
    if best is None:
        raise relax.refusal(search, request, with_changes=with_changes)
    rejected = tuple(Rejected(what=what, why=why) for what, why in search.rejected.items())
    wider = replace(request, n_ctx=None, n_ctx_min=best.setting.n_ctx, objective=Objective.CONTEXT)
    more = contexts_of(wider, facts.n_ctx_train)[:3] if request.n_ctx is None else ()
    others = alternatives(search, request, best, contexts=more) if with_alternatives else ()
    seconds = time.process_time() - started
    context = _context(model, request, capacities, beside, nature)
    plans = tuple(make_plan(choice, context) for choice in (best, *others))
    return Planned(
        facts=facts, host=host, request=request, choice=best, others=others, rejected=rejected, plan=plans[0],
        alternatives=plans[1:], capacities=capacities, effort=search.effort, seconds=seconds, model=model,
        nature=nature, tools=tools, warnings=_warned(model, best, tools),
    )  # fmt: skip


def _warned(model: ModelOnHost, best: Choice, tools: Instruments) -> tuple[str, ...]:
    """What to know before the plan is followed."""
    objection = tools.objection(best.setting.quant)
    flagged = (f"{best.setting.quant} is advised against: {objection}",) if objection else ()
    return (*flagged, *model.said(best.setting))


def suited(request: PlanRequest, facts: ModelFacts, nature: Nature) -> PlanRequest:
    """The request as this kind of model can be asked. An encoder takes a text in one micro-batch, as long as its
    context; its context is the trained one unless another is asked for."""
    if nature.kind is not Kind.ENCODER:
        return request
    n_ctx = request.n_ctx or facts.n_ctx_train or USUAL_N_CTX
    return replace(request, n_ctx=n_ctx, n_ubatches=(max(n_ctx, 512),), kv_types=request.kv_types[:1])


def model_on_host(
    facts: ModelFacts, host: HostFacts, request: PlanRequest, *, own: str | None, companions: Companions,
    speeds: SpeedHost | None = None,
) -> ModelOnHost:  # fmt: skip
    """The model on the host, with the shipped and the measured tables."""
    from quantplan.rehearsal.calibration import speed_host_for

    return ModelOnHost(
        facts=facts, host=host, speeds=speeds or speed_host_for(host), quality_of=quality_of(facts),
        objection=lambda quant: objection(quant, request), own=own, extras=companions.files,
        draft=companions.draft_facts,
    )  # fmt: skip


def plan_file(file: Path, *, quant: str, host: HostFacts, name: str) -> Plan:
    """The plan of a finished GGUF on this host."""
    from quantplan.model.read import read_model

    facts = replace(read_model(str(file)), id=name)
    facts = replace(facts, source=replace(facts.source, file=file.name))
    return recommend(facts, host, PlanRequest(), as_it_is=quant, with_alternatives=False).plan


def _cache_types(model: ModelOnHost, request: PlanRequest) -> tuple[tuple[str, str], ...]:
    """Those that this model can have. Raises BadValue when none is left."""
    from quantplan.errors import BadValue

    good = model.cache_types(request.kv_types)
    if not good:
        asked = ", ".join(f"{k}/{v}" for k, v in request.kv_types)
        why = f"cannot be had with {model.facts.id}" + (
            "" if model.flash else ": a quantized V cache needs flash attention, which its heads do not have on a GPU"
        )
        raise BadValue(what="cache type", value=asked, why=why)
    return good


def _free_disk(host: HostFacts, facts: ModelFacts) -> int | None:
    """Free disk for the file, where it is not there yet and the disk is known."""
    local = facts.origin is FactsOrigin.GGUF_HEADER and facts.source.repo is None
    return host.disk.free_bytes if host.disk is not None and not local else None


def _context(
    model: ModelOnHost, request: PlanRequest, capacities: tuple[Capacity, ...], companions: Companions, nature: Nature
) -> Context:
    facts, host = model.facts, model.host
    return Context(
        model=facts.id, n_layer=facts.n_layer, source=_source(facts.source), request=request, capacities=capacities,
        cpu=host.cpu, host_fingerprint=host.fingerprint, made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        speed=full_depth(model.figures, generates=not nature.embeds), quality=model.quality_of,
        mmproj=companions.mmproj, draft=companions.draft, embeddings=nature.embeds,
    )  # fmt: skip


def _source(source: SourceFacts) -> Mapping[str, Any]:
    return {"repo": source.repo, "revision": source.revision, "file": source.file, "sha256": source.sha256}


def quality_of(facts: ModelFacts) -> Callable[[str], Quality | None]:
    """The expected damage by preset, from the shipped table."""
    from quantplan.quant.quality import expected_quality, family_of
    from quantplan.quant.quality_table import read_quality_table

    table = read_quality_table()
    family, active = family_of(facts.id, table), facts.active_parameters
    measured = measured_here(facts.id, table)

    @cache
    def of(quant: str) -> Quality | None:
        if quant == MIXTURE_PRESET:
            why = "the experts stay in MXFP4, as they were published: nothing is lost in them"
            return Quality(kld_mean=0.0, ppl_ratio=1.0, low=0.0, high=0.01, origin=why)
        return expected_quality(
            quant, n_params=facts.parameters, family=family, arch=facts.arch, table=table,
            n_active=active if active < facts.parameters else None, measured=measured,
        )  # fmt: skip

    return of


def measured_here(model: str, table: QualityTable) -> tuple[OwnMeasurement, ...]:
    """What gates on this host measured of this model and its siblings; a history that cannot be read is no reason not
    to plan."""
    from quantplan.artifact.history_store import store_file
    from quantplan.errors import HistoryUnreadable

    if not store_file().exists():
        return ()
    from quantplan.quant.own_quality import own_measurements

    try:
        return own_measurements(model, table=table)
    except HistoryUnreadable:
        return ()


def objection(quant: str, request: PlanRequest) -> str | None:
    """What speaks against a preset for the use, or None."""
    from quantplan.quant.uses import quality_flags

    return next((flag.why for flag in quality_flags(quant, use=request.use) if not flag.advised), None)


def own_preset(facts: ModelFacts) -> str | None:
    """The preset a GGUF already has, or None where presets can still be chosen (16 and 32 bit)."""
    if facts.origin is not FactsOrigin.GGUF_HEADER:
        return None
    from quantplan.quant.presets import PRESETS

    number = facts.metadata.get("general.file_type")
    name = next((p.file_type for p in PRESETS.values() if p.file_type_id == number), None)
    if name not in _PLAIN:
        return name or "as it is"
    return None if all(tensor.type_name in _PLAIN for tensor in facts.tensors) else "as it is"  # the header is wrong


_PLAIN = ("F16", "BF16", "F32")
MIXTURE_PRESET = "MXFP4_MOE"  # keeps experts that are MXFP4 in the source as they are


def buildable(facts: ModelFacts, quants: Sequence[str]) -> tuple[str, ...]:
    """The presets that llama-quantize makes of this source: what is quantized there already is not quantized again.

    Raises BadValue when none is left.
    """
    from quantplan.errors import BadValue
    from quantplan.model import catalog
    from quantplan.quant.presets import apply_preset

    entry = catalog.find(facts.id) if facts.origin is FactsOrigin.CATALOG else None
    if entry is not None and entry.only_presets:
        return entry.only_presets
    if all(tensor.type_name in _PLAIN for tensor in facts.tensors):
        return tuple(quants)
    tried = dict.fromkeys((*quants, MIXTURE_PRESET))
    good = tuple(q for q in tried if not apply_preset(facts.tensors, facts.metadata, q).requantized)
    if not good:
        why = "would quantize again what is quantized in the source, which llama-quantize refuses"
        raise BadValue(what="presets", value=", ".join(tried), why=why)
    return good
