"""What became worse since the last build that passed. Pure: entries in, regressions out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.history import Entry
from quantplan.artifact.results import Metric, Verdict

BOUND = 3.5  # standard errors of the difference: some 30 metrics a gate, fewer than 1 % of gates wrong by chance
UNMEASURED_NOISE = 0.05  # share of the old value that a metric without a standard error may be off


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """One metric (or the verdict, `metric` None) that is worse than in the last passing result."""

    model: str
    quant: str | None
    kind: str
    metric: str | None
    corpus: str | None
    before: float | None
    after: float | None
    noise: float | None
    before_at: str
    after_at: str
    why: str


def regressions(entries: Sequence[Entry]) -> tuple[Regression, ...]:
    """The newest result of each model, preset and kind against the newest passing one before it."""
    groups: dict[tuple[str, str | None, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.model, entry.quant, entry.kind), []).append(entry)
    found: list[Regression] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda entry: entry.made_at)
        passed = next((e for e in reversed(ordered[:-1]) if e.verdict is Verdict.PASS), None)
        if passed is not None:
            found += _between(passed, ordered[-1])
    return tuple(found)


def _between(before: Entry, after: Entry) -> list[Regression]:
    found = []
    if after.verdict is not Verdict.PASS:
        why = after.result.reason or f"the verdict was pass and is {after.verdict.value}"
        found.append(_regression(before, after, None, None, why))
    old = {(m.name, m.corpus): m for m in before.result.metrics}
    for metric in after.result.metrics:
        known = old.get((metric.name, metric.corpus))
        worsened = worse(known, metric) if known is not None else None
        if worsened is not None:
            found.append(_regression(before, after, known, metric, worsened))
    return found


def worse(before: Metric, after: Metric) -> str | None:
    """Why `after` is worse beyond its noise, or None: 3.5 standard errors of the difference, or 5 % of the old value
    where a metric has none."""
    sign = better_side(after)
    if sign is None or before.value is None or after.value is None:
        return None
    noise = _noise(before, after)
    if not sign * (before.value - after.value) > noise:
        return None
    how = "fell" if sign > 0 else "rose"
    return f"{how} from {before.value:.5g} to {after.value:.5g}, more than its noise of {noise:.2g}"


def better_side(metric: Metric) -> int | None:
    """1 where higher is better, -1 where lower is, None where neither says anything (the reference's perplexity).
    By the side of its limit; without one by its name."""
    if metric.limit_is is not None:
        return 1 if metric.limit_is == "min" else -1
    if metric.name.endswith(("_per_s", "same_top", "accuracy", "_parity")):
        return 1
    lower = metric.name.startswith(("kld_", "ppl_ratio", "rms_")) or metric.name.endswith(("_s", "_bytes", "_ms"))
    return -1 if lower else None


def _noise(before: Metric, after: Metric) -> float:
    if before.se is not None and after.se is not None:
        return BOUND * math.hypot(before.se, after.se)
    return UNMEASURED_NOISE * abs(before.value or 0.0)


def _regression(before: Entry, after: Entry, old: Metric | None, new: Metric | None, why: str) -> Regression:
    return Regression(
        model=after.model, quant=after.quant, kind=after.kind, metric=new.name if new else None,
        corpus=new.corpus if new else None, before=old.value if old else None, after=new.value if new else None,
        noise=_noise(old, new) if old and new else None, before_at=before.made_at, after_at=after.made_at, why=why,
    )  # fmt: skip
