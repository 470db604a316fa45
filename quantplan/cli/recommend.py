"""`quantplan recommend`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, hardware_option, json_option, preset

if TYPE_CHECKING:
    from quantplan.cli.planning import Planned


@click.command("recommend", epilog="Example: quantplan recommend meta-llama/Llama-3.1-8B-Instruct")
@click.argument("model", required=False)
@click.option("--ctx", "n_ctx", type=int, help="Tokens of context a slot; left out, 8,192 and more where it is free.")
@click.option("--parallel", "n_parallel", type=int, default=1, show_default=True, help="Slots: requests at a time.")
@click.option("--quant", "quants", multiple=True, metavar="PRESET", help="Consider only this preset (repeatable).")
@click.option("--save", type=click.Path(dir_okay=False), help="Write the plan to this file.")
@click.option("--explain", is_flag=True, help="Show the alternatives, what was rejected, and where numbers come from.")
@hardware_option
@click.option("--list-models", is_flag=True, help="List the models of the catalog and stop.")
@json_option
def command(
    model: str | None, n_ctx: int | None, n_parallel: int, quants: tuple[str, ...], save: str | None, explain: bool,
    machine: str | None, list_models: bool, as_json: bool,
) -> None:  # fmt: skip
    """The quantization, context and layer offload for MODEL on this host or another, with memory by part and why.

    MODEL is a GGUF, a Hugging Face folder or config.json, the id of a catalog model (see --list-models),
    `org/name[@revision]` on the hub, a GGUF repository's file (`org/name:Q4_K_M`), or the address of a GGUF.
    """
    if list_models or model is None:
        _list_models(as_json=as_json, asked=list_models)
        return
    from quantplan.cli import planning
    from quantplan.hardware.host import host_for
    from quantplan.model.read import read_model
    from quantplan.planner.request import PRESETS, PlanRequest

    asked = tuple(dict.fromkeys(preset(quant) for quant in quants)) or PRESETS
    facts, host = read_model(model), host_for(machine)
    planned = planning.recommend(facts, host, PlanRequest(n_ctx=n_ctx, n_parallel=n_parallel, quants=asked))
    if save:
        from pathlib import Path

        from quantplan.artifact.plan_file import write_plan

        write_plan(Path(save), planned.plan)
    from quantplan.report.recommendation import recommendation_text

    data = recommendation(planned)
    text = recommendation_text(planned.plan, planned.found, facts, host, following=data["next"], explain=explain)
    emit("recommend", data, as_json=as_json, text=text, warnings=(*facts.warnings, *host.warnings))


def recommendation(planned: Planned) -> dict[str, Any]:
    """The contract's data."""
    facts = planned.facts
    return {
        "model": {
            "id": facts.id, "revision": facts.source.revision, "arch": facts.arch, "n_layer": facts.n_layer,
            "n_ctx_train": facts.n_ctx_train, "parameters": facts.parameters, "origin": facts.origin,
        },
        "hardware": planned.host,
        "plan": planned.plan,
        "alternatives": planned.alternatives,
        "rejected": [{"what": one.what, "why": one.why} for one in planned.found.rejected],
        "next": _next(planned),
    }  # fmt: skip


def _next(planned: Planned) -> str:
    """The next command to type: building starts from a local folder, a GGUF is served as it is."""
    import shlex

    from quantplan.model.facts import FactsOrigin

    facts, quant = planned.facts, planned.plan.quant
    if facts.origin is FactsOrigin.GGUF_HEADER:
        return shlex.join(planned.plan.argv)
    if facts.origin is FactsOrigin.CATALOG:
        name = facts.id.rsplit("/", 1)[-1]
        return f"hf download {facts.id} --local-dir {name} && quantplan build {name} --quant {quant}"
    return f"quantplan build {shlex.quote(facts.id)} --quant {quant}"


def _list_models(*, as_json: bool, asked: bool) -> None:
    from quantplan.model import catalog

    if not asked:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    found = catalog.entries()
    rows = [{"id": entry.id, "parameters": entry.parameters, "licence": entry.licence} for entry in found]
    width = max(len(entry.id) for entry in found)
    lines = [
        f"{entry.id:<{width}}  {(entry.parameters or 0) / 1e9:8.2f} B  {entry.licence or ''}".rstrip()
        for entry in found
    ]
    emit("recommend-models", {"models": rows}, as_json=as_json, text="\n".join(lines))
