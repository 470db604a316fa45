"""One model over several machines: side by side, and the smallest that does."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.cli import planning
from quantplan.cli.plan_options import request_from
from quantplan.cli.planning import Planned
from quantplan.cli.recommendation import companions
from quantplan.errors import Contradiction, DoesNotFit, NoMachineMeets
from quantplan.hardware.facts import HostFacts
from quantplan.model.facts import ModelFacts
from quantplan.planner.cost import Cost, Prices, cost
from quantplan.planner.plan import reads_host
from quantplan.planner.ranking import Delivered, delivered
from quantplan.planner.request import READING_PER_S, PlanRequest
from quantplan.planner.score import first_token_seconds

# Cards that people buy; the table has hundreds more. Each with so much RAM beside it, which is said with the answer.
CARDS = (
    "gtx1080ti", "rtx2080ti", "rtx3050", "rtx3060", "rtx3080", "rtx3090", "rtx3090ti", "rtx4060", "rtx4060ti16gb",
    "rtx4070", "rtx4070super", "rtx4070tisuper", "rtx4080super", "rtx4090", "rtx5060", "rtx5060ti16gb", "rtx5070",
    "rtx5070ti", "rtx5080", "rtx5090", "rx6800xt", "rx7900xtx", "rx9070xt", "arcb580", "arca770", "t4", "p40", "l4",
    "a10g", "a6000", "l40s", "rtxpro6000", "a100pcie40gb", "a100pcie80gb", "h100", "h100nvl94gb", "h200", "b200",
    "mi300x",
)  # fmt: skip
RAM_BESIDE = "64GB"
_TWO = ("rtx3060", "rtx3090", "rtx4090", "rtx5090", "a6000", "l40s", "h100", "h200")  # often bought in pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class OnMachine:
    """The plan on one machine, or why there is none."""

    machine: str
    host: HostFacts
    plan: Delivered | None
    whole: bool  # nothing of the weights is read from RAM beside a GPU
    why: str | None = None
    cost: Cost | None = None
    planned: Planned | None = None

    @property
    def size(self) -> tuple[int, int, int, str]:
        """Smaller first: memory of the GPUs, their bandwidth, RAM."""
        gpus = self.host.gpus
        total = sum(gpu.total_bytes for gpu in gpus if not gpu.unified)
        bandwidth = sum(gpu.bandwidth_bytes_per_s or 0 for gpu in gpus)
        return total, bandwidth, self.host.ram.total_bytes, self.machine

    def to_json(self) -> dict[str, Any]:
        gpus = [{"product": gpu.product, "total_bytes": gpu.total_bytes} for gpu in self.host.gpus]
        return {"machine": self.machine, "gpus": gpus, "ram_bytes": self.host.ram.total_bytes, "plan": self.plan,
                "whole_on_gpu": self.whole, "why": self.why, "cost": self.cost}  # fmt: skip


def table(kind: str) -> tuple[str, ...]:
    """Names of the machines of a kind: cards, cloud or all."""
    from quantplan.hardware.profiles import cloud_instances

    one = tuple(f"{card}+{RAM_BESIDE}" for card in CARDS)
    cards = (*one, *(f"2x{card}+{RAM_BESIDE}" for card in _TWO))
    cloud = tuple(cloud_instances())
    return {"cards": cards, "cloud": cloud, "all": (*cards, *cloud)}[kind]


def over_machines(
    model: str, machines: Sequence[str], prices: Prices, *, smallest: bool, margins: tuple[tuple[str, int], ...],
    draft: str | None, mmproj: Path | None, **asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """The data of the document. Raises NoMachineMeets where no machine does; UnknownGpu and BadProfile for a name."""
    from quantplan.hardware.host import host_for
    from quantplan.model.read import read_model

    gc.disable()
    request, facts = request_from(**asked), read_model(model)
    sees = asked["use"] == "vision"
    if smallest and request.min_tokens_per_s is None:
        request = request_from(**{**asked, "min_tokens_per_s": READING_PER_S})
    hosts = [(name, host_for(name)) for name in dict.fromkeys(machines)]
    found: list[OnMachine] = []
    for name, host in hosts:
        beside = companions(facts, host, request, draft=draft, mmproj=mmproj, sees=sees)
        like = next((one.planned for one in reversed(found) if one.planned is not None), None)
        found.append(_on(name, host, facts, request, prices, margins=dict(margins), beside=beside, like=like))
    meeting = [one for one in found if _meets(one, request)]
    best = min(meeting, key=lambda one: one.size, default=None)
    if best is None and smallest:
        raise _none_meets(facts, found)
    found = [one if one in meeting else _objected(one) for one in found]
    shown = _around(found, meeting, best) if smallest else found
    return {
        "model": facts.id, "objective": request.objective, "use": asked["use"], "n_machines": len(found),
        "n_meeting": len(meeting), "constraints": {"min_tokens_per_s": request.min_tokens_per_s,
        "n_ctx": request.n_ctx, "n_ctx_min": request.n_ctx_min, "n_parallel": request.n_parallel},
        "machines": shown, "smallest": best.machine if best is not None else None,
        "cheapest": _cheapest(meeting),
    }  # fmt: skip


def _on(
    name: str, host: HostFacts, facts: ModelFacts, request: PlanRequest, prices: Prices, *, margins: dict[str, int],
    beside: planning.Companions, like: Planned | None,
) -> OnMachine:  # fmt: skip
    try:
        found = planning.recommend(facts, host, request, margins=margins, companions=beside, with_alternatives=False,
                                   with_changes=False, like=like.model if like else None)  # fmt: skip
    except (DoesNotFit, Contradiction) as error:
        return OnMachine(machine=name, host=host, plan=None, whole=False, why=str(error))
    first = first_token_seconds(found.choice.merits, found.request.workload)
    outline = found.tools.outline_of(found.plan.quant)
    plan = delivered(found.choice, found.request, file_bytes=outline.file_bytes, first_token_s=first)
    return OnMachine(
        machine=name, host=host, plan=plan, whole=not reads_host(found.choice.setting, facts.n_layer),
        cost=None if prices.is_empty else cost_of(found, prices, name), planned=found,
    )  # fmt: skip


def cost_of(found: Planned, prices: Prices, machine: str) -> Cost:
    """The cost at a plan's own concurrency."""
    used = found.choice.setting.devices
    limits = [gpu.power_limit_w for gpu in found.host.gpus if gpu.name in used]
    merits = found.choice.merits
    return cost(prices, machine, decode_per_s=0.0 if found.nature.embeds else merits.total,
                prefill_per_s=merits.prefill, power_limits_w=limits)  # fmt: skip


def _meets(one: OnMachine, request: PlanRequest) -> bool:
    """A plan that fits, with a preset that nothing speaks against or that was asked for."""
    return one.plan is not None and (request.any_preset or one.plan.key[0] > 0)


def _objected(one: OnMachine) -> OnMachine:
    """A machine that does not do, with the reason."""
    return one if one.plan is None else replace(one, why=f"only at {one.plan.quant}, which is advised against")


def _around(found: Sequence[OnMachine], meeting: Iterable[OnMachine], best: OnMachine | None) -> list[OnMachine]:
    """The smallest that does, the next two, and the two just below that do not, with the reason."""
    assert best is not None
    does = sorted(meeting, key=lambda one: one.size)
    below = sorted((one for one in found if one not in does and one.size < best.size), key=lambda one: one.size)
    return [*below[-2:], *does[:3]]


def _cheapest(meeting: Iterable[OnMachine]) -> str | None:
    """The machine with the cheapest generated token, of those whose whole cost is known."""
    known = [(one.cost.generated, one.machine) for one in meeting
             if one.cost is not None and one.cost.generated is not None and not one.cost.lacks]  # fmt: skip
    return min(known)[1] if known else None


def _none_meets(facts: ModelFacts, found: Sequence[OnMachine]) -> NoMachineMeets:
    nearest = max(found, key=lambda one: (one.plan is not None, one.size))
    return NoMachineMeets(model=facts.id, n=len(found), nearest=nearest.machine, why=_objected(nearest).why or "")
