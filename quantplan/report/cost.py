"""Costs as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantplan.planner.cost import Cost
from quantplan.report.columns import columns
from quantplan.report.recommendation import rate


def per_million(cost: Cost | None, what: str) -> str:
    """A figure, or that it is not known; with + where a part of it is missing."""
    value = None if cost is None else cost.generated if what == "generated" else cost.prompt
    if cost is None or value is None:
        return "unknown"
    return f"{money(value)}{'+' if cost.lacks else ''}"


def money(value: float) -> str:
    """Three digits, never fewer than two after the point for small amounts."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def cost_text(told: Mapping[str, Any]) -> str:
    """The section of a recommendation."""
    options: Sequence[Mapping[str, Any]] = told["options"]
    rows = [
        (one["what"], one["machine"], rate(one["total_decode_tokens_per_s"]),
         per_million(one["cost"], "generated"), per_million(one["cost"], "prompt"), one["remark"])
        for one in options
    ]  # fmt: skip
    own: Cost = options[0]["cost"]
    unit = f" in {own.currency}" if own.currency else ""
    head = ("plan", "machine", "decode/s", "/M generated", "/M prompt", "")
    lines = [f"Cost of a million tokens{unit}, machine at work {own.utilisation:.0%} of its hours",
             *(f"  {line}" for line in columns([head, *rows], left=2)), f"  {_hour(own)}"]  # fmt: skip
    if own.lacks:
        lines.append(f"  + : without {' and '.join(own.lacks)}, which nobody gave")
    return "\n".join(lines)


def _hour(cost: Cost) -> str:
    if cost.hour is None:
        return "an hour of work: unknown"
    parts = [("electricity", cost.electricity_hour), ("machine", cost.owned_hour), ("rent", cost.rented_hour)]
    told = ", ".join(f"{name} {money(part)}" for name, part in parts if part is not None)
    draw = f" ({cost.watts:,.0f} W, {cost.watts_from})" if cost.watts and cost.electricity_hour is not None else ""
    return f"an hour of work: {money(cost.hour)} ({told}){draw}"
