"""Which models are worth running on a host: what each would deliver at its best plan, as one number. Pure.

    merit = strength / (strength + HALF) × worth of the plan
    strength = sqrt(parameters × active parameters) in billions × 2 ^ (years since 2024)

The worth of the plan is that of `planner.score` (speed of a whole request, faithfulness of the preset). The strength is
a prior and called one: no table of benchmark figures ships with quantplan, so a model's size and age stand in for what
it can do. That a newer model of a size does more is published (capability per parameter doubles every three to four
months by arXiv:2412.04315); a doubling a year is our own, much more careful judgement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quantplan.planner.candidates import Choice
from quantplan.planner.request import READING_PER_S, Objective, PlanRequest
from quantplan.planner.score import HARM_NATS, balance

FIRST_YEAR = 2024
HALF_BILLIONS = 32.0  # strength at which half of what size can bring is there
HALF_BILLIONS_EMBEDDING = 1.0
HALF_PREFILL_PER_S = 1000.0  # tokens of prompt: what an embedding model's speed is measured against


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A best plan in the numbers that a table shows; each is what the recommendation of that model says."""

    quant: str
    n_ctx_per_slot: int
    n_parallel: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    n_cpu_moe: int
    devices: tuple[tuple[str, int], ...]  # total bytes by name
    file_bytes: int
    decode_tokens_per_s: float
    total_decode_tokens_per_s: float
    prefill_tokens_per_s: float
    first_token_s: float | None
    damage_nats: float
    worth: float
    key: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in _TOLD}
        return {**told, "devices": dict(self.devices)}


_TOLD = (
    "quant", "n_ctx_per_slot", "n_parallel", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe", "file_bytes",
    "decode_tokens_per_s", "total_decode_tokens_per_s", "prefill_tokens_per_s", "first_token_s", "damage_nats",
    "worth",
)  # fmt: skip


def delivered(choice: Choice, request: PlanRequest, *, file_bytes: int, first_token_s: float) -> Delivered:
    """What a plan gives."""
    setting, merits = choice.setting, choice.merits
    return Delivered(
        quant=setting.quant, n_ctx_per_slot=setting.n_ctx, n_parallel=setting.n_parallel, type_k=setting.type_k,
        type_v=setting.type_v, n_gpu_layers=setting.n_gpu_layers, n_cpu_moe=setting.n_cpu_moe,
        devices=tuple((need.name, need.total_bytes) for need in choice.needs), file_bytes=file_bytes,
        decode_tokens_per_s=merits.decode, total_decode_tokens_per_s=merits.total,
        prefill_tokens_per_s=merits.prefill, first_token_s=first_token_s if first_token_s < math.inf else None,
        damage_nats=merits.damage, worth=balance(merits, request), key=choice.key,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model of the catalog with its best plan; None where nothing fits, with the reason."""

    id: str
    parameters: int
    active: int
    released: str | None
    embeds: bool
    plan: Delivered | None
    why: str | None = None
    notes: tuple[str, ...] = ()
    facts: Any = field(default=None, repr=False, compare=False)  # what the caller keeps of it

    @property
    def strength(self) -> float:
        """The prior: billions of parameters, worth more the newer the model."""
        size = math.sqrt(self.parameters * self.active) / 1e9
        return float(size * 2 ** (_year(self.released) - FIRST_YEAR))


def _year(released: str | None) -> float:
    """A month as a year with a fraction; an unknown one is the first year."""
    if not released:
        return float(FIRST_YEAR)
    year, _, month = released.partition("-")
    return int(year) + (int(month or 1) - 1) / 12


def merit(candidate: Candidate, request: PlanRequest) -> float:
    """From 0 to 1; 0 where nothing fits."""
    plan = candidate.plan
    if plan is None:
        return 0.0
    if candidate.embeds:
        share = candidate.strength / (candidate.strength + HALF_BILLIONS_EMBEDDING)
        faithful = HARM_NATS / (HARM_NATS + max(plan.damage_nats, 0.0))
        return share * math.sqrt(faithful) * plan.prefill_tokens_per_s / (
            plan.prefill_tokens_per_s + HALF_PREFILL_PER_S
        )  # fmt: skip
    return candidate.strength / (candidate.strength + HALF_BILLIONS) * plan.worth


def ranked(candidates: Sequence[Candidate], request: PlanRequest) -> tuple[Candidate, ...]:
    """Those that fit, the best first: by merit, or by what another objective asks for."""
    fitting = [one for one in candidates if one.plan is not None]
    return tuple(sorted(fitting, key=lambda one: (_order(one, request), one.released or "", one.id), reverse=True))


def _order(one: Candidate, request: PlanRequest) -> tuple[float, ...]:
    """The larger the better. Too slow to read along comes last but for the objective `balanced`, which weighs it."""
    plan, worth = one.plan, merit(one, request)
    assert plan is not None
    usable = float(one.embeds or plan.decode_tokens_per_s >= READING_PER_S)
    objective = request.objective
    if objective is Objective.QUALITY:
        faithful = math.sqrt(HARM_NATS / (HARM_NATS + max(plan.damage_nats, 0.0)))
        return usable, one.strength * faithful, worth
    if objective is Objective.SPEED:
        return (plan.prefill_tokens_per_s if one.embeds else plan.decode_tokens_per_s), worth
    if objective is Objective.CONTEXT:
        return usable, float(plan.n_ctx_per_slot), worth
    if objective is Objective.THROUGHPUT:
        return usable, plan.total_decode_tokens_per_s, worth
    if objective is Objective.LATENCY:
        return usable, -(plan.first_token_s if plan.first_token_s is not None else math.inf), worth
    return (worth,)
