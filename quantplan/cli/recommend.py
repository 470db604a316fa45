"""`quantplan recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, hardware_option, json_option
from quantplan.cli.plan_options import plan_options

if TYPE_CHECKING:
    from quantplan.cli.planning import Planned


@click.command("recommend", epilog="Example: quantplan recommend meta-llama/Llama-3.1-8B-Instruct")
@click.argument("model", required=False)
@plan_options
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan to this file.")
@click.option("--explain", is_flag=True, help="Show what was rejected and where every number comes from.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the plan as a page with charts and sliders, for any browser, without a network.")  # fmt: skip
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write the page's charts as PNG into this folder (the extra plot).")  # fmt: skip
@hardware_option
@click.option("--list-models", is_flag=True, help="List the models of the catalog and stop.")
@json_option
def command(
    model: str | None, save: Path | None, explain: bool, html: Path | None, png: Path | None, machine: str | None,
    list_models: bool, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """The quantization, context and layer offload for MODEL on this host or another, with memory by part and why.

    MODEL is a GGUF, a Hugging Face folder or config.json, the id of a catalog model (see --list-models),
    `org/name[@revision]` on the hub, a GGUF repository's file (`org/name:Q4_K_M`), or the address of a GGUF.
    Exit status 3 when nothing fits; the hint then says the smallest change that would.
    """
    if list_models or model is None:
        _list_models(as_json=as_json, asked=list_models)
        return
    from quantplan.cli.recommendation import plan_for, recommendation
    from quantplan.report.recommendation import recommendation_text

    planned = plan_for(model, machine, **asked)
    if save:
        from quantplan.artifact.plan_file import write_plan

        write_plan(save, planned.plan)
    answer, data = recommendation(planned, explain=explain)
    emit("recommend", data, as_json=as_json, text=recommendation_text(answer), warnings=_warnings(planned))
    if html is not None or png is not None:
        from quantplan.cli.recommend_page import write_pictures

        words = {**asked, "model": model, "machine": machine}
        write_pictures(planned, data, html=html, png=png, asked=words, warnings=_warnings(planned))


def _warnings(planned: Planned) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*planned.facts.warnings, *planned.host.warnings, *planned.warnings)))


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
