"""The contract check as text."""

from __future__ import annotations

from quantplan.serving.contract import Item, Report, Status

_MARKS = {Status.OK: "ok", Status.MISMATCH: "MISMATCH", Status.NOT_VERIFIABLE: "not verifiable here"}


def verification_text(report: Report) -> str:
    """One line an item, mismatches first, and the verdict."""
    order = (Status.MISMATCH, Status.NOT_VERIFIABLE, Status.OK)
    items = sorted(report.items, key=lambda item: order.index(item.status))
    width = max(len(item.name) for item in items)
    seen = f"process {report.pid}" if report.pid else f"HTTP only: {report.why_remote}"
    lines = [f"{report.url}: {report.runtime}, {seen}", *(_line(item, width) for item in items)]
    wrong = sum(1 for item in items if item.status is Status.MISMATCH)
    if wrong:
        end = f"{wrong} mismatch(es): what runs is not what was planned"
    elif report.unverified:
        end = f"not verifiable from here: {', '.join(report.unverified)}"
    else:
        end = "served as planned"
    return "\n".join((*lines, end))


def _line(item: Item, width: int) -> str:
    told = f"  {item.name:<{width}}  {item.tier.value:<6}  {_MARKS[item.status]}"
    if item.status is Status.MISMATCH:
        told += f": planned {item.planned}, found {item.found}"
    return told + (f" ({item.why})" if item.why and item.status is not Status.OK else "")
