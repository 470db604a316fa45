"""One model over several machines, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantplan.report.columns import columns
from quantplan.report.cost import per_million
from quantplan.report.ranking import damage_text
from quantplan.report.recommendation import rate
from quantplan.units import GIB

_HEAD = ("machine", "quant", "context", "memory", "where", "decode/s", "prompt/s", "first token", "KLD")
_COST = ("/M generated", "/M prompt")


def machines_text(data: Mapping[str, Any]) -> str:
    """What `recommend` prints for several machines."""
    priced = any(one.cost is not None for one in data["machines"])
    currency = next((one.cost.currency for one in data["machines"] if one.cost is not None), "")
    head = (*_HEAD, *(f"{currency}{title}" for title in _COST)) if priced else _HEAD
    rows = [_row(one, priced=priced) for one in data["machines"] if one.plan is not None]
    lines = [f"{data['model']} on {data['n_machines']} machine(s), each at its best plan", ""]
    if rows:
        lines += columns([head, *rows], left=2)
    refused = [f"  {one.machine}: {one.why}" for one in data["machines"] if one.why is not None]
    lines += ["", "Does not do", *refused] if refused else []
    lines += ["", *_said(data)]
    return "\n".join(lines)


def _row(one: Any, *, priced: bool) -> tuple[str, ...]:
    plan = one.plan
    memory = " + ".join(f"{name} {n / GIB:.1f}" for name, n in plan.devices if n)
    where = "GPU" if one.whole else "GPU and RAM" if plan.n_gpu_layers else "CPU"
    first = f"{plan.first_token_s:.2g} s" if plan.first_token_s is not None else "-"
    row = (
        one.machine, plan.quant, f"{plan.n_ctx_per_slot:,}", f"{memory} GiB", where,
        rate(plan.total_decode_tokens_per_s), rate(plan.prefill_tokens_per_s), first, damage_text(plan.damage_nats),
    )  # fmt: skip
    return (*row, per_million(one.cost, "generated"), per_million(one.cost, "prompt")) if priced else row


def _said(data: Mapping[str, Any]) -> list[str]:
    smallest, least = data["smallest"], data["constraints"]["min_tokens_per_s"]
    if smallest is None:
        return ["None of them has a plan with a preset that is not advised against."]
    limit = f" with at least {least:g} tokens/s" if least else ""
    lines = [f"Smallest that does{limit}: {smallest}"]
    if data["cheapest"]:
        lines.append(f"Cheapest generated token: {data['cheapest']}")
    return [*lines, f"Next: quantplan recommend {data['model']} --hardware {smallest}"]
