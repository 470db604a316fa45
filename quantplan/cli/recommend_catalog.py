"""`recommend` without a model: which models of the catalog are worth running on a machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.cli.plan_options import request_from
from quantplan.model.catalog import BUNDLED, CatalogEntry, entries
from quantplan.planner.ranking import Candidate, merit, ranked
from quantplan.planner.request import PlanRequest

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts

# `agents` call tools; who names no use chats.
CATALOG_USES = {"general": "chat", "agents": "tools"}
_KNOWN = ("chat", "code", "reasoning", "tools", "vision", "embedding")

Filter = tuple[str, Callable[[CatalogEntry], bool]]


def ranking(
    machine: str | None, *, licences: Sequence[str], families: Sequence[str], max_parameters: int | None, top: int,
    margins: tuple[tuple[str, int], ...], draft: str | None, mmproj: Path | None, **asked: Any,
) -> tuple[HostFacts, dict[str, Any]]:  # fmt: skip
    """The host and the data of the document. Raises NoModelLeft, UseWithoutData, NoModelFits and what planning
    raises."""
    from quantplan.cli.catalog_plans import candidates, steady
    from quantplan.errors import BadValue
    from quantplan.hardware.host import host_for

    gc.disable()  # what a process of seconds leaves behind, the system collects
    if draft or mmproj:
        raise BadValue(what="a draft or a projector", value=None, why="belongs to one model: name the model too")
    use = CATALOG_USES.get(asked["use"], asked["use"])
    chosen = filtered(use, licences=licences, families=families, max_parameters=max_parameters)
    request, host = request_from(**asked), steady(host_for(machine))
    found = candidates(chosen, host, request, margins=dict(margins), with_projector=use == "vision")
    best = ranked(found, request)
    if not best:
        raise _nothing_fits(found)
    rest = [one for one in found if one.plan is None]
    data = {
        "use": use, "objective": request.objective, "hardware": host, "n_models": len(found),
        "n_fit": len(best), "prior": _PRIOR,
        "models": [_told(one, place, request) for place, one in enumerate(best[:top], 1)],
        "not_fitting": [{"id": one.id, "why": one.why} for one in rest],
    }  # fmt: skip
    return host, data


_PRIOR = (
    "no benchmark figures ship with quantplan: what a model can do is taken from its size and age (docs/catalog.md), "
    "and its uses are what its publisher says"
)


def _told(one: Candidate, place: int, request: PlanRequest) -> dict[str, Any]:
    entry: CatalogEntry = one.facts
    return {
        "rank": place, "id": one.id, "merit": merit(one, request), "strength": one.strength,
        "parameters": entry.published or entry.parameters or one.parameters, "active_parameters": one.active,
        "licence": entry.licence, "released": entry.released, "uses": entry.uses, "gguf": entry.gguf,
        "source": entry.source, "note": entry.note, "embeds": one.embeds, "plan": one.plan,
        "notes": one.notes,
    }  # fmt: skip


def filtered(
    use: str, *, licences: Sequence[str], families: Sequence[str], max_parameters: int | None
) -> tuple[CatalogEntry, ...]:
    """The models for a use that pass the filters. Raises UseWithoutData, NoModelLeft."""
    from quantplan.errors import UseWithoutData

    meant = tuple(entry for entry in entries() if use in entry.uses and entry.id != BUNDLED)
    if not meant:
        raise UseWithoutData(use=use, known=_KNOWN)
    filters = _filters(licences, families, max_parameters)
    left = tuple(entry for entry in meant if all(passes(entry) for _, passes in filters))
    if not left:
        raise _no_model_left(use, meant, filters, licences)
    return left


def _filters(licences: Sequence[str], families: Sequence[str], max_parameters: int | None) -> list[Filter]:
    filters: list[Filter] = []
    if licences:
        asked = tuple(one.lower() for one in licences)
        filters.append((f"the licence {' or '.join(licences)}",
                        lambda entry: (entry.licence or "").lower().startswith(asked)))  # fmt: skip
    if families:
        names = tuple(one.lower() for one in families)
        filters.append((f"the name {' or '.join(families)}",
                        lambda entry: any(name in entry.id.lower() for name in names)))  # fmt: skip
    if max_parameters is not None:
        most = max_parameters
        filters.append((f"at most {most / 1e9:g} B parameters",
                        lambda entry: (entry.published or entry.parameters or 0) <= most))  # fmt: skip
    return filters


def _no_model_left(
    use: str, meant: Sequence[CatalogEntry], filters: Sequence[Filter], licences: Sequence[str]
) -> Exception:
    from quantplan.errors import NoModelLeft

    def left(dropped: int) -> int:
        kept = [passes for i, (_, passes) in enumerate(filters) if i != dropped]
        return sum(all(passes(entry) for passes in kept) for entry in meant)

    without = tuple((what, left(i)) for i, (what, _) in enumerate(filters))
    known = sorted({entry.licence for entry in meant if entry.licence})
    near = known if licences and not any(filters[0][1](entry) for entry in meant) else ()
    return NoModelLeft(asked=(f"the use {use}", *(what for what, _ in filters)), without=without, near=near)


def _nothing_fits(found: Sequence[Candidate]) -> Exception:
    from quantplan.errors import NoModelFits

    smallest = min(found, key=lambda one: one.parameters)
    return NoModelFits(n=len(found), smallest=smallest.id, why=smallest.why or "nothing fits")
