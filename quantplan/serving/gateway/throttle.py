"""How many requests run at once when the GPU throttles or memory runs short: a pure decision with hysteresis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from quantplan.artifact.plan_file import Plan
from quantplan.hardware.monitor import Sample
from quantplan.hardware.nvidia import HARMFUL_THROTTLE

# A power cap is how a loaded card normally runs, so it does not count as throttling (nvidia.HARMFUL_THROTTLE).
HOST = "Host"  # the plan's name of the host's margin


class Strain(Enum):
    """What one sample says: lower, stay, or calm enough to restore."""

    HIGH = "high"
    BETWEEN = "between"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Samples in a row before something changes, and the host memory (bytes) under and over which it does."""

    slots: int
    low_available_bytes: int | None
    calm_available_bytes: int | None
    high_samples: int = 2
    calm_samples: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """Requests that may run at once, how long the strain or the calm has lasted, and why it was last changed."""

    limit: int
    high: int = 0
    calm: int = 0
    reason: str | None = None


def rules_for(plan: Plan) -> Rules:
    """Half of the plan's host margin left is short; the whole margin free again is calm."""
    margin = next((margin.bytes for margin in plan.margin if margin.device == HOST), None)
    return Rules(
        slots=plan.n_parallel,
        low_available_bytes=margin // 2 if margin else None,
        calm_available_bytes=margin,
    )


def judge(sample: Sample, rules: Rules) -> tuple[Strain, str | None]:
    """What a sample says, and why when it is not calm."""
    for device in sample.devices:
        harmful = HARMFUL_THROTTLE.intersection(device.throttle_reasons)
        if harmful:
            return Strain.HIGH, f"{device.name}: {', '.join(sorted(harmful))}"
    if rules.low_available_bytes is not None and sample.available_bytes < rules.low_available_bytes:
        return Strain.HIGH, f"{sample.available_bytes // 1024**2:,} MiB of host memory left"
    if sample.swap_in_bytes_per_s and sample.memory_wait:
        return Strain.HIGH, "tasks wait for memory to be read back from swap"
    if rules.calm_available_bytes is not None and sample.available_bytes < rules.calm_available_bytes:
        return Strain.BETWEEN, "host memory is within the margin"
    return Strain.NONE, None


def decide(now: Concurrency, sample: Sample, rules: Rules) -> Concurrency:
    """Halved after `high_samples` samples of strain in a row, one more after `calm_samples` calm ones; never under 1
    or over the slots. A sample between the two counts for neither."""
    strain, why = judge(sample, rules)
    if strain is Strain.HIGH:
        high = now.high + 1
        if high < rules.high_samples:
            return replace(now, high=high, calm=0)
        return Concurrency(limit=max(1, now.limit // 2), reason=why)
    if strain is Strain.BETWEEN or now.limit >= rules.slots:
        return replace(now, high=0, calm=0, reason=now.reason if now.limit < rules.slots else None)
    if now.calm + 1 < rules.calm_samples:
        return replace(now, high=0, calm=now.calm + 1)
    limit = now.limit + 1
    return Concurrency(limit=limit, reason=now.reason if limit < rules.slots else None)
