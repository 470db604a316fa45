"""What "best" means for each objective: keys that compare, the larger the better.

`balanced` multiplies two shares that both bring less and less:

    worth = speed / (speed + COMFORT) × slow × (HARM / (HARM + damage)) ^ weight × cache

speed is that of a whole request (prompt and answer) in answer tokens a second, damage the expected mean KL divergence
of the preset. At COMFORT tokens/s half of what speed can bring is there; at HARM nats half of the faithfulness (weight
1). The weight says how much faithfulness counts for a use. slow is 1 where decoding keeps up with reading, below that
the root of the share it reaches. Presets that are advised against come after all others.
Speeds and worths that differ by less than a percent count as equal: then the longer context wins, then fewer devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantplan.planner.request import READING_PER_S, Objective, PlanRequest, Workload
from quantplan.quant.uses import Use

COMFORT_PER_S = 20.0  # tokens: four times as fast as reading
HARM_NATS = 0.02  # about Q4_K_M of a model of 14 billion parameters
WEIGHTS = {
    Use.GENERAL: 0.5,
    Use.CODE: 1.0,
    Use.REASONING: 1.0,
    Use.AGENTS: 1.0,
    Use.CLASSIFICATION: 0.25,
}
# A preference, not a measurement: a quantized cache must bring more than this to be taken.
CACHE_WORTH = {"f32": 1.0, "f16": 1.0, "bf16": 1.0, "q8_0": 0.95, "q5_1": 0.85, "q5_0": 0.85}
OTHER_CACHE_WORTH = 0.75
_NOTHING = -1e9

Key = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merits:
    """What a candidate gives: decode of one request and `total` of all slots in tokens a second, damage in nats."""

    decode: float
    total: float
    prefill: float
    damage: float
    advised: bool
    cache: float  # of CACHE_WORTH


def cache_worth(type_k: str, type_v: str) -> float:
    """The share of its worth that a plan keeps with these cache types."""
    return min(CACHE_WORTH.get(kind.lower(), OTHER_CACHE_WORTH) for kind in (type_k, type_v))


def request_seconds(merits: Merits, workload: Workload) -> float:
    """Seconds from a prompt to the end of its answer."""
    if merits.prefill <= 0 or merits.decode <= 0:
        return math.inf
    return workload.n_prompt / merits.prefill + workload.n_answer / merits.decode


def first_token_seconds(merits: Merits, workload: Workload) -> float:
    """Seconds until the first token."""
    if merits.prefill <= 0 or merits.decode <= 0:
        return math.inf
    return workload.n_prompt / merits.prefill + 1 / merits.decode


def balance(merits: Merits, request: PlanRequest) -> float:
    """The worth of `balanced`, from 0 to 1."""
    seconds = request_seconds(merits, request.workload)
    speed = request.workload.n_answer / seconds if seconds < math.inf else 0.0
    faithful = math.pow(HARM_NATS / (HARM_NATS + max(merits.damage, 0.0)), WEIGHTS[request.use])
    slow = math.sqrt(min(1.0, max(merits.decode, 0.0) / READING_PER_S))
    return speed / (speed + COMFORT_PER_S) * slow * faithful * merits.cache


def key_of(request: PlanRequest, merits: Merits, *, n_ctx: int, n_parallel: int, n_devices: int, n_ubatch: int) -> Key:
    """The larger, the better. Of every part of it more is better, so that upper bounds give an upper bound."""
    advised = 1.0 if merits.advised or request.any_preset else 0.0
    worth = _percents(balance(merits, request))
    ties = (float(n_ctx), -float(n_devices), -float(n_ubatch))
    faithful = -round(max(merits.damage, 0.0), 5)
    if request.objective is Objective.QUALITY:
        usable = float(merits.decode >= READING_PER_S)
        return (advised, usable, faithful, merits.cache, worth, *ties)
    if request.objective is Objective.SPEED:
        return (advised, _percents(merits.decode), faithful, merits.cache, worth, *ties)
    if request.objective is Objective.CONTEXT:
        usable = float(merits.decode >= READING_PER_S)
        return (advised, usable, float(n_ctx), worth, *ties)
    if request.objective is Objective.THROUGHPUT:
        usable = float(merits.total / max(n_parallel, 1) >= READING_PER_S)
        return (advised, usable, _percents(merits.total), faithful, merits.cache, *ties)
    if request.objective is Objective.LATENCY:
        seconds = first_token_seconds(merits, request.workload)
        return (advised, _percents(1 / seconds if seconds < math.inf else 0.0), worth, *ties)
    return (advised, worth, *ties)


def _percents(value: float) -> float:
    """A logarithm in whole percents."""
    return float(round(math.log(value) * 100)) if value > 0 else _NOTHING
