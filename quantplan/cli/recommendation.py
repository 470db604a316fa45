"""From what was typed to a plan, and from a plan to what is shown of it."""

from __future__ import annotations

import gc
import shlex
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Figure
from quantplan.cli import planning
from quantplan.cli.plan_options import request_from
from quantplan.cli.planning import Companions, Planned
from quantplan.hardware.facts import HostFacts
from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import HOST, ExtraModel
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.planner import reasons, threads
from quantplan.planner.instruments import depth_of, least_context
from quantplan.planner.plan import reads_host
from quantplan.planner.request import PlanRequest
from quantplan.planner.speed import time_to_load
from quantplan.report.explanation import Explained, explain, explained_text
from quantplan.report.recommendation import Alternative, Answer


def plan_for(
    model: str, machine: str | None, *, draft: str | None, mmproj: Path | None, margins: tuple[tuple[str, int], ...],
    **asked: Any,
) -> Planned:  # fmt: skip
    """The plan that the options ask for. Raises NothingFits, Contradiction, BadValue, and what reading raises."""
    from quantplan.hardware.host import host_for
    from quantplan.model.read import read_model

    gc.disable()  # what a process of half a second leaves behind, the system collects
    request = request_from(**asked)
    facts, host = read_model(model), host_for(machine)
    _check_devices(host, request, margins)
    sees = asked["use"] == "vision"
    if sees or asked["use"] == "embedding":
        _check_use(facts, asked["use"])
    beside = companions(facts, host, request, draft=draft, mmproj=mmproj, sees=sees)
    return planning.recommend(facts, host, request, margins=dict(margins), companions=beside)


def _check_devices(host: HostFacts, request: PlanRequest, margins: tuple[tuple[str, int], ...]) -> None:
    from quantplan.errors import BadValue

    names = tuple(gpu.name for gpu in host.gpus)
    asked = [*(request.devices or ()), *(name for name, _ in margins if name not in ("GPU", HOST))]
    for name in asked:
        if name not in names:
            known = ", ".join(names) or "it has no GPU"
            raise BadValue(what="device", value=name, why=f"is not on this host: {known}")


def _check_use(facts: ModelFacts, use: str) -> None:
    """Raises BadValue for a model that does not see, or makes no vectors."""
    from quantplan.errors import BadValue
    from quantplan.planner.nature import nature_of

    nature = nature_of(facts)
    if use == "vision" and not nature.sees:
        raise BadValue(what="use", value=use, why=f"is not for {facts.id}: it has no vision tower")
    if use == "embedding" and not nature.embeds:
        raise BadValue(what="use", value=use, why=f"is not for {facts.id}: it generates text and has no pooling")


def companions(
    facts: ModelFacts, host: HostFacts, request: PlanRequest, *, draft: str | None, mmproj: Path | None,
    sees: bool = False,
) -> Companions:  # fmt: skip
    """Projector and draft, with the least memory that they take. `sees`: images are wanted, so a projector that no file
    was named for counts with the size of the model's vision tower."""
    first = host.gpus[0].name if host.gpus and request.devices != () else HOST
    files: tuple[ExtraModel, ...] = ()
    if mmproj is not None:
        files = (ExtraModel(name=f"projector {mmproj.name}", device=first, model_bytes=mmproj.stat().st_size),)
    elif sees and facts.vision_bytes:
        files = (ExtraModel(name="projector in 16 bit", device=first, model_bytes=facts.vision_bytes),)
    if draft is None:
        return Companions(files=files, mmproj=str(mmproj) if mmproj else None)
    from quantplan.cli.plan_tools import draft_memory
    from quantplan.model.read import read_model

    told, n_parallel = read_model(draft), request.n_parallel or 1
    n_ctx = least_context(request, facts.n_ctx_train) * n_parallel
    least = draft_memory(told, n_ctx=n_ctx, n_parallel=n_parallel, device=first)
    return Companions(
        files=files, draft_facts=told, draft_least=least, mmproj=str(mmproj) if mmproj else None, draft=draft
    )


def recommendation(planned: Planned, *, explain: bool = False) -> tuple[Answer, dict[str, Any]]:
    """What is shown as text, and the contract's data."""
    facts, request, choice = planned.facts, planned.request, planned.choice
    tools = planned.tools
    why = reasons.reasons(choice, planned.others, request, tools, planned.nature)
    trades = [reasons.trade(other, choice) for other in planned.others]
    numbers = reasons.arithmetic(choice, request)
    told = explained(planned, numbers)
    depth = depth_of(request, facts.n_ctx_train, choice.setting.n_ctx)
    generates = not planned.nature.embeds
    answer = Answer(
        facts=facts, host=planned.host, plan=planned.plan, is_what=planned.nature.says, depth=depth,
        start=(depth, choice.merits.decode) if depth < choice.setting.n_ctx and generates else None,
        first_token=(request.workload.n_prompt, numbers["first_token_s"]) if generates else None,
        total_per_s=choice.merits.total if choice.setting.n_parallel > 1 and generates else None, why=why,
        alternatives=tuple(
            Alternative(plan=plan, trade=trade, decode_per_s=other.merits.decode)
            for plan, trade, other in zip(planned.alternatives, trades, planned.others, strict=True)
        ),
        load=load_time(planned), next=following(planned), explained=_explained_text(planned, told) if explain else (),
    )  # fmt: skip
    return answer, _data(planned, answer, told, numbers, trades)


def _data(
    planned: Planned, answer: Answer, told: tuple[Explained, ...], numbers: dict[str, float], trades: list[str]
) -> dict[str, Any]:
    facts, effort = planned.facts, planned.effort
    return {
        "model": {
            "id": facts.id, "revision": facts.source.revision, "arch": facts.arch, "n_layer": facts.n_layer,
            "n_ctx_train": facts.n_ctx_train, "parameters": facts.parameters, "origin": facts.origin,
        },
        "nature": planned.nature,
        "hardware": planned.host,
        "objective": planned.request.objective,
        "use": planned.request.use,
        "plan": planned.plan,
        "why": list(answer.why),
        "numbers": numbers,
        "load_s": answer.load,
        "alternatives": planned.alternatives,
        "trades": trades,
        "rejected": [{"what": one.what, "why": one.why} for one in planned.rejected],
        "explained": told,
        "search": {"candidates": effort.n_raw, "bounds": effort.n_bounds, "exact": effort.n_exact,
                   "seconds": round(planned.seconds, 4)},
        "next": answer.next,
    }  # fmt: skip


def explained(planned: Planned, numbers: dict[str, float]) -> tuple[Explained, ...]:
    """Every number with its formula and source."""
    setting, facts = planned.choice.setting, planned.facts
    ctx = planned.model.context(setting)
    chosen = threads.choose(planned.host.cpu, weights_on_host=reads_host(setting, facts.n_layer))
    effort = planned.effort
    searched = f"{effort.n_raw:,} candidates, {effort.n_exact} by exact memory, {1000 * planned.seconds:.0f} ms"
    return explain(
        planned.plan, facts, cells=ctx.n_cells * ctx.n_stream, arithmetic=numbers, searched=searched,
        drivers={gpu.name: _driver(gpu.product) for gpu in planned.host.gpus},
        depth=depth_of(planned.request, facts.n_ctx_train, setting.n_ctx), threads=chosen.why,
    )  # fmt: skip


def load_time(planned: Planned) -> Figure | None:
    """Seconds to read the file from a cold disk, where this host's rate was measured."""
    disk = planned.host.disk
    file_bytes = planned.tools.outline_of(planned.plan.quant).file_bytes
    return time_to_load(file_bytes, read_bytes_per_s=disk.read_bytes_per_s if disk else None)


def _driver(product: str) -> str:
    known = driver_context(product)
    return f"the driver's context, {known.low_bytes // 2**20:,} to {known.high_bytes // 2**20:,} MiB: {known.source}"


def _explained_text(planned: Planned, told: tuple[Explained, ...]) -> tuple[str, ...]:
    rejected = [f"  {one.what}: {one.why}" for one in planned.rejected]
    return (*(["", "Rejected", *rejected] if rejected else []), *explained_text(told))


def following(planned: Planned) -> str:
    """The next command to type: a finished GGUF is pulled or served, everything else is built."""
    from quantplan.model import catalog

    facts, plan = planned.facts, planned.plan
    if facts.origin is FactsOrigin.GGUF_HEADER:
        if facts.source.repo is None:
            return shlex.join(plan.argv)
        return f"quantplan pull {facts.source.repo} --quant {plan.quant}"
    if facts.origin is FactsOrigin.CATALOG:
        return f"quantplan build {facts.id} --quant {plan.quant}"
    if catalog.find(facts.id) is not None and facts.source.repo is None:
        return f"quantplan build {facts.id} --quant {plan.quant}"  # the bundled model
    where = facts.source.file if facts.source.repo is None and facts.source.file else facts.id
    return f"quantplan build {shlex.quote(where.removesuffix('/config.json'))} --quant {plan.quant}"
