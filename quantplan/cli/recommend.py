"""`quantplan recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.catalog_options import catalog_options
from quantplan.cli.options import emit, json_option
from quantplan.cli.plan_options import plan_options
from quantplan.cli.price_options import price_options

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
@catalog_options
@price_options
@click.option("--list-models", is_flag=True, help="List the models of the catalog and stop.")
@json_option
def command(
    model: str | None, save: Path | None, explain: bool, html: Path | None, png: Path | None, list_models: bool,
    as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """The quantization, context and layer offload for MODEL on this host or another, with memory by part and why.
    With several machines: MODEL on each, side by side. Without MODEL: which models of the catalog are worth running.

    MODEL is a GGUF, a Hugging Face folder or config.json, the id of a catalog model (see --list-models),
    `org/name[@revision]` on the hub, a GGUF repository's file (`org/name:Q4_K_M`), or the address of a GGUF.
    Exit status 3 when nothing fits; the hint then says the smallest change that would.
    """
    from quantplan.cli.recommend_what import What, split

    what, machine, rest = split(model, list_models=list_models, **asked)
    if what is not What.PLAN or model is None:
        from quantplan.cli.recommend_what import show

        if html or png:
            raise click.UsageError("--html and --png show one MODEL on one machine", click.get_current_context())
        show(what, model, machine, as_json=as_json, rest=rest)
        return
    from quantplan.cli.recommend_what import one_plan
    from quantplan.report.recommendation import recommendation_text

    planned, answer, data, more = one_plan(model, machine, explain=explain, save=save, rest=rest)
    text = "\n\n".join((recommendation_text(answer), *more))
    emit("recommend", data, as_json=as_json, text=text, warnings=_warnings(planned))
    if html is not None or png is not None:
        from quantplan.cli.recommend_page import write_pictures

        words = {**rest.asked, "model": model, "machine": machine}
        write_pictures(planned, data, html=html, png=png, asked=words, warnings=_warnings(planned))


def _warnings(planned: Planned) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*planned.facts.warnings, *planned.host.warnings, *planned.warnings)))
