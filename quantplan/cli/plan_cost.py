"""What a plan's tokens cost, beside its alternatives and the price of not fitting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantplan.cli import planning
from quantplan.cli.machines import CARDS, RAM_BESIDE, cost_of
from quantplan.cli.planning import Planned
from quantplan.errors import Contradiction, DoesNotFit
from quantplan.planner.candidates import Choice
from quantplan.planner.cost import Cost, Prices
from quantplan.planner.plan import reads_host
from quantplan.planner.request import PRESETS

Option = dict[str, Any]


def plan_cost(planned: Planned, prices: Prices, machine: str) -> dict[str, Any]:
    """The options with their costs: the plan, its alternatives on this machine, and where a part of it is read from
    RAM beside a GPU, what would fit: a smaller preset, a bigger card."""
    own = _option("the plan", planned, prices, machine)
    options = [own]
    for choice in planned.others:
        options.append(_option("alternative", replace(planned, choice=choice), prices, machine))
    if planned.host.gpus and reads_host(planned.choice.setting, planned.facts.n_layer):
        options += [one for one in (_smaller(planned, prices, machine), _bigger(planned, prices)) if one is not None]
    return {"prices": prices, "options": [{**one, "remark": _remark(one, own)} for one in options]}


def _option(what: str, planned: Planned, prices: Prices, machine: str) -> Option:
    choice = planned.choice
    label = f"{what}: {choice.setting.quant} at {choice.setting.n_ctx:,}"
    told: Cost = cost_of(planned, prices, machine)
    return {
        "what": label, "machine": machine, "quant": choice.setting.quant, "n_ctx_per_slot": choice.setting.n_ctx,
        "n_parallel": choice.setting.n_parallel, "total_decode_tokens_per_s": choice.merits.total,
        "prefill_tokens_per_s": choice.merits.prefill, "damage_nats": choice.merits.damage, "cost": told,
    }  # fmt: skip


def _remark(one: Option, own: Option) -> str:
    """How it compares with the plan: in money where both are known, and in faithfulness."""
    if one is own:
        return ""
    said = []
    ours, theirs = own["cost"].generated, one["cost"].generated
    if ours and theirs and one["cost"].lacks == own["cost"].lacks:
        said.append(f"{theirs / ours:.2g} × the money")
    if one["damage_nats"] > own["damage_nats"] > 0:
        said.append(f"{one['damage_nats'] / own['damage_nats']:.2g} × the damage")
    return ", ".join(said)


def _smaller(planned: Planned, prices: Prices, machine: str) -> Option | None:
    """The best preset of which every layer is on the GPUs, where there is one."""
    used = planned.choice.setting.quant
    for quant in PRESETS[PRESETS.index(used) + 1 :] if used in PRESETS else ():
        found = _again(planned, planned.host, quants=(quant,))
        if found is not None and _whole(found.choice, planned.facts.n_layer):
            return _option("fits the GPU", found, prices, machine)
    return None


def _bigger(planned: Planned, prices: Prices) -> Option | None:
    """The smallest card of the table that takes the plan's preset and context wholly."""
    from quantplan.hardware.profiles import load_profile

    setting, have = planned.choice.setting, sum(gpu.total_bytes for gpu in planned.host.gpus)
    hosts = [(f"{card}+{RAM_BESIDE}", load_profile(f"{card}+{RAM_BESIDE}")) for card in CARDS]
    larger = [(name, host) for name, host in hosts if host.gpus[0].total_bytes > have]
    larger.sort(key=lambda pair: (pair[1].gpus[0].total_bytes, pair[1].gpus[0].bandwidth_bytes_per_s or 0))
    for name, host in larger:
        found = _again(planned, host, quants=(setting.quant,), n_ctx=setting.n_ctx, devices=None)
        if found is not None and _whole(found.choice, planned.facts.n_layer):
            return _option("a bigger card", found, prices, name)
    return None


def _again(planned: Planned, host: Any, **changes: Any) -> Planned | None:
    request = replace(planned.request, any_preset=True, **changes)
    try:
        return planning.recommend(planned.facts, host, request, with_alternatives=False, with_changes=False,
                                  like=planned.model)  # fmt: skip
    except (DoesNotFit, Contradiction):
        return None


def _whole(choice: Choice, n_layer: int) -> bool:
    return not reads_host(choice.setting, n_layer)
