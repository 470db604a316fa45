"""What `recommend` was asked: a plan, machines side by side, a ranking of models, or the list of the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit
from quantplan.cli.price_options import NAMES, prices_from

if TYPE_CHECKING:
    from quantplan.cli.planning import Planned
    from quantplan.planner.cost import Prices
    from quantplan.report.recommendation import Answer


class What(Enum):
    """The four answers."""

    PLAN = "plan"
    MACHINES = "machines"
    RANKING = "ranking"
    LIST = "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The other options, by what they are for. `asked` is what a plan is asked for."""

    asked: dict[str, Any]
    filters: dict[str, Any]
    prices: Prices
    machines: tuple[str, ...]
    table: str | None
    smallest: bool
    runtime: str | None


_FILTERS = ("licences", "families", "max_parameters", "top")


def split(model: str | None, *, list_models: bool, **options: Any) -> tuple[What, str | None, Rest]:
    """What is asked, the machine where it is one (None: this host), and the rest."""
    prices = prices_from(**{name: options.pop(name) for name in NAMES})
    filters = {name: options.pop(name) for name in _FILTERS}
    machines, table = tuple(options.pop("machines")), options.pop("machine_table")
    smallest, runtime = options.pop("smallest"), options.pop("runtime")
    rest = Rest(asked=options, filters=filters, prices=prices, machines=machines, table=table, smallest=smallest,
                runtime=runtime)  # fmt: skip
    several = len(set(machines)) > 1 or table is not None or smallest
    if model is None and several and not list_models:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    what = What.LIST if list_models else What.RANKING if model is None else What.MACHINES if several else What.PLAN
    return what, machines[0] if machines else None, rest


def show(what: What, model: str | None, machine: str | None, *, as_json: bool, rest: Rest) -> None:
    """Prints a list, a ranking or a comparison of machines."""
    if what is What.LIST:
        _list_models(as_json=as_json)
    elif what is What.RANKING:
        _rank(machine, as_json=as_json, rest=rest)
    else:
        assert model is not None
        _compare(model, as_json=as_json, rest=rest)


def one_plan(
    model: str, machine: str | None, *, explain: bool, save: Path | None, rest: Rest
) -> tuple[Planned, Answer, dict[str, Any], list[str]]:
    """The plan of one model on one machine with what is shown of it, and further sections of the text."""
    from quantplan.cli.recommendation import plan_for, recommendation

    planned = plan_for(model, machine, **rest.asked)
    if save:
        from quantplan.artifact.plan_file import write_plan

        write_plan(save, planned.plan)
    answer, data = recommendation(planned, explain=explain)
    more: list[str] = []
    if not rest.prices.is_empty:
        from quantplan.cli.plan_cost import plan_cost
        from quantplan.report.cost import cost_text

        data["cost"] = plan_cost(planned, rest.prices, machine or "this machine")
        more.append(cost_text(data["cost"]))
    from quantplan.cli.runtimes import runtime_choice
    from quantplan.report.runtime import runtime_text

    data["runtime"] = runtime_choice(planned, asked=rest.runtime, use=rest.asked["use"])
    if rest.runtime is not None:
        more.append(runtime_text(data["runtime"]))
    return planned, answer, data, more


def _rank(machine: str | None, *, as_json: bool, rest: Rest) -> None:
    from quantplan.cli.recommend_catalog import ranking
    from quantplan.report.ranking import ranking_text

    host, data = ranking(machine, **rest.filters, **rest.asked)
    text = ranking_text(data, machine=host.profile or "this machine")
    emit("recommend-catalog", data, as_json=as_json, text=text, warnings=host.warnings)


def _compare(model: str, *, as_json: bool, rest: Rest) -> None:
    from quantplan.cli.machines import RAM_BESIDE, over_machines, table
    from quantplan.report.machines import machines_text

    kind = rest.table or (None if rest.machines else "all")
    names = (*rest.machines, *(table(kind) if kind else ()))
    data = over_machines(model, names, rest.prices, smallest=rest.smallest, **rest.asked)
    assumed = f"cards of the table are taken with {RAM_BESIDE} of RAM and 8 cores beside them"
    warnings = (assumed,) if kind in ("cards", "all") else ()
    emit("recommend-machines", data, as_json=as_json, text=machines_text(data), warnings=warnings)


def _list_models(*, as_json: bool) -> None:
    from quantplan.model import catalog

    found = catalog.entries()
    rows = [
        {"id": entry.id, "parameters": entry.parameters, "licence": entry.licence, "released": entry.released,
         "uses": entry.uses, "source": entry.source}
        for entry in found
    ]  # fmt: skip
    width = max(len(entry.id) for entry in found)
    lines = [
        f"{entry.id:<{width}}  {(entry.parameters or 0) / 1e9:8.2f} B  {entry.licence or ''}".rstrip()
        for entry in found
    ]
    emit("recommend-models", {"models": rows}, as_json=as_json, text="\n".join(lines))
