"""A ranking of models as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantplan.planner.ranking import Delivered
from quantplan.report.columns import columns
from quantplan.report.recommendation import rate
from quantplan.units import GIB

UNKNOWN_DAMAGE = 1.0  # cli/plan_tools.py: what counts where there is no figure

_HEAD = ("#", "model", "B", "licence", "quant", "context", "memory", "decode/s", "prompt/s", "first token", "KLD")


def ranking_text(data: Mapping[str, Any], *, machine: str) -> str:
    """What `recommend` without a model prints."""
    rows = [_row(row) for row in data["models"]]
    n, fit, use = data["n_models"], data["n_fit"], data["use"]
    best = data["models"][0]
    return "\n".join([
        f"{machine}: {fit} of {n} models for {use} fit; each at its best plan",
        "",
        *columns([_HEAD, *rows], left=5),
        *_notes(data["models"]),
        "",
        f"Ranked by size, age and plan: {data['prior']}.",
        f"Next: quantplan recommend {best['id']}",
    ])  # fmt: skip


def _notes(rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """What is to be known of figures, with the places it is about."""
    about: dict[str, list[int]] = {}
    for row in rows:
        for note in row["notes"]:
            about.setdefault(note, []).append(row["rank"])
    return (
        ["", *(f"{', '.join(f'#{rank}' for rank in ranks)}: {note}" for note, ranks in about.items())] if about else []
    )


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    plan: Delivered = row["plan"]
    memory = " + ".join(f"{name} {n / GIB:.1f}" for name, n in plan.devices if n)
    first = f"{plan.first_token_s:.1f} s" if plan.first_token_s is not None and not row["embeds"] else "-"
    return (
        str(row["rank"]), row["id"], f"{row['parameters'] / 1e9:.1f}", row["licence"] or "unknown", plan.quant,
        f"{plan.n_ctx_per_slot:,}", f"{memory} GiB", "-" if row["embeds"] else rate(plan.decode_tokens_per_s),
        rate(plan.prefill_tokens_per_s), first, damage_text(plan.damage_nats),
    )  # fmt: skip


def damage_text(nats: float) -> str:
    """The expected damage; that of a preset nobody measured counts as UNKNOWN_DAMAGE and is not shown."""
    return "unknown" if nats >= UNKNOWN_DAMAGE else f"{nats:.3f}"
