"""Confidence bounds for damage, and the plan of a sequential test: pure functions.

The unit is the chunk (one window of the text): its tokens share a context, so they are not independent. Each metric
has bounds of its own kind, because damage is skewed: a mean of values that are never negative is bounded on the
logarithmic scale, a share of tokens by Wilson's interval with the chunks' own design effect, a quantile by the order
statistics at that interval's ends (Woodruff). docs/gate.md says what is assumed and what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from quantplan.pipeline.damage import SHARES, Damage

LEAST_CHUNKS = 20  # before the first look
LOOKS_AT = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the budget
# A few chunks may hide damage that sits in few places: an early pass must be inside this share of the limit.
CAUTION = ((40, 1 / 3), (80, 1 / 2))  # (under so many chunks, share)
CAUTIOUS = ("kld_mean", "rms_delta_p", "ln_ppl_ratio", "kld_99", "kld_999")  # what a few places can move far
WIDEST_FAIL = 0.5  # a mean whose standard error is above half of it proves nothing
LEAST_DF = 9
DEFF_WHEN_NONE_SEEN = 4.0  # a share of nought has no design effect of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A damage (more is worse) with its standard error and one-sided confidence bounds."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """The one-sided error rates of one look at one metric: of calling good what is outside the limit, and bad what is
    inside."""

    wrong_pass: float
    wrong_fail: float


def looks(budget: int) -> tuple[int, ...]:
    """After how many chunks a verdict is tried: 20, 40, 80, 140, 200 of the default budget."""
    found = {min(budget, max(LEAST_CHUNKS, round(share * budget))) for share in LOOKS_AT}
    return tuple(sorted(found))


def errors_per_look(error_rate: float, *, n_looks: int, n_tests: int) -> Errors:
    """The stated rate, divided. A pass needs every metric of every corpus to pass, so its error is that of one of
    them (intersection-union) and is divided by the looks only; a fail needs just one, so it is divided by both.
    Half of each goes to the limit, which is measured too."""
    return Errors(wrong_pass=error_rate / n_looks / 2, wrong_fail=error_rate / n_looks / n_tests / 2)


@cache
def student_t(tail: float, df: int) -> float:
    """The quantile of Student's t with that upper tail (Cornish-Fisher series; within 1 % from 9 degrees on, under
    which it is infinite: no bound can be trusted there)."""
    if df < LEAST_DF:
        return math.inf
    z = NormalDist().inv_cdf(1 - tail)
    z3, z5, z7 = (float(z**power) for power in (3, 5, 7))
    terms = ((z3 + z) / 4, (5 * z5 + 16 * z3 + 3 * z) / 96, (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / 384)
    return float(z + sum(term / df ** (i + 1) for i, term in enumerate(terms)))


def mean_bounds(chunks: Sequence[float], *, low_tail: float, high_tail: float) -> Bounds:
    """Of a mean of values that are never negative, by chunk means: exp(ln mean ± t·se/mean). Above, one more chunk as
    bad as the worst is counted in: what a heavy tail has not shown yet."""
    mean, se = mean_se(chunks)
    if mean == 0 and math.isfinite(se):
        return Bounds(value=0.0, se=0.0, low=0.0, high=0.0)
    t_low, t_high = student_t(low_tail, len(chunks) - 1), student_t(high_tail, len(chunks) - 1)
    if not math.isfinite(se) or not math.isfinite(t_high):
        return Bounds(value=mean, se=se, low=0.0, high=math.inf)
    more, more_se = mean_se((*chunks, max(chunks)))
    low = mean * math.exp(-t_low * se / mean) if se <= WIDEST_FAIL * mean else 0.0
    return Bounds(value=mean, se=se, low=low, high=more * _exp(t_high * more_se / more))


def ratio_bounds(
    chunks: Sequence[float], others: Sequence[float], *, low_tail: float, high_tail: float
) -> Bounds:  # fmt: skip
    """Of the ratio of two means over the same chunks, paired: what both have in common cancels. 1 where both are
    nought."""
    top, under = math.fsum(chunks) / len(chunks), math.fsum(others) / len(others)
    if tuple(chunks) == tuple(others):
        return Bounds(value=1.0, se=0.0, low=1.0, high=1.0)
    if under <= 0 or top <= 0:
        return Bounds(value=math.inf if under <= 0 else 0.0, se=math.inf, low=0.0, high=math.inf)
    ratio = top / under
    _, relative = mean_se([a / top - b / under for a, b in zip(chunks, others, strict=True)])
    t_low, t_high = student_t(low_tail, len(chunks) - 1), student_t(high_tail, len(chunks) - 1)
    if not math.isfinite(relative) or not math.isfinite(t_high):
        return Bounds(value=ratio, se=math.inf, low=0.0, high=math.inf)
    low = ratio * math.exp(-t_low * relative) if relative <= WIDEST_FAIL else 0.0
    return Bounds(value=ratio, se=ratio * relative, low=low, high=ratio * _exp(t_high * relative))


def signed_bounds(chunks: Sequence[float], *, low_tail: float, high_tail: float) -> Bounds:
    """Of a mean that may be negative: Student's interval, shifted for skewness (Johnson 1978)."""
    mean, se = mean_se(chunks)
    n = len(chunks)
    t_low, t_high = student_t(low_tail, n - 1), student_t(high_tail, n - 1)
    if not math.isfinite(se) or not math.isfinite(t_high):
        return Bounds(value=mean, se=se, low=-math.inf, high=math.inf)
    third = math.fsum((value - mean) ** 3 for value in chunks) / n
    shift = third / (6 * se**2 * n**2) if se else 0.0  # mu3 / (6 s^2 n), with se^2 = s^2 / n
    shift = math.copysign(min(abs(shift), se), shift)
    return Bounds(value=mean, se=se, low=mean + shift - t_low * se, high=mean + shift + t_high * se)


def rate_bounds(shares: Sequence[float], *, n_scored: int, low_tail: float, high_tail: float) -> Bounds:
    """Of a share of tokens, from each chunk's share: Wilson's interval at the effective number of tokens."""
    rate, se = mean_se(shares)
    t_low, t_high = student_t(low_tail, len(shares) - 1), student_t(high_tail, len(shares) - 1)
    if not math.isfinite(se) or not math.isfinite(t_high):
        return Bounds(value=rate, se=se, low=0.0, high=1.0)
    independent = rate * (1 - rate) / (len(shares) * n_scored)
    deff = max(1.0, se**2 / independent) if independent > 0 else DEFF_WHEN_NONE_SEEN
    n = len(shares) * n_scored / deff
    return Bounds(value=rate, se=se, low=_wilson(rate, n, -t_low), high=_wilson(rate, n, t_high))


def quantile_bounds(name: str, damage: Damage, *, low_tail: float, high_tail: float) -> Bounds:
    """Of the divergence that a small share of the tokens exceeds. Unbounded above where too few tokens were seen
    for it, and nought below where the bound lies under what is kept of the tail."""
    share, above = SHARES[name], getattr(damage, name.replace("kld", "above"))
    rate = rate_bounds(above, n_scored=damage.n_scored, low_tail=high_tail, high_tail=low_tail)
    moved = share - rate.value  # ties and rounding move the observed share a little
    high = _at_share(damage, rate.low + moved)
    low = _at_share(damage, rate.high + moved)
    value = damage.quantile(name)
    return Bounds(value=value, se=_spread(damage, rate, moved), low=min(low, value), high=max(high, value))


def _spread(damage: Damage, rate: Bounds, moved: float) -> float:
    """Half the distance of the quantiles one standard error of the share to either side."""
    low, high = (_at_share(damage, rate.value + moved + sign * rate.se) for sign in (1, -1))
    return (high - low) / 2


def _at_share(damage: Damage, share: float) -> float:
    """The divergence that `share` of the tokens exceed; infinite beyond the largest, nought under the tail."""
    rank = math.floor(share * damage.n_tokens)  # so many values are larger
    if rank < 1:
        return math.inf
    return damage.tail[rank] if rank < len(damage.tail) else 0.0


def _wilson(rate: float, n: float, z: float) -> float:
    centre = rate + z * z / (2 * n)
    found = (centre + z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return min(1.0, max(0.0, found))


def mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, infinite under two values. Exact sums: the order does not move the last bit."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf


def bounds(name: str, damage: Damage, *, low_tail: float, high_tail: float) -> Bounds:
    """One damage of an artifact on a corpus. rms_delta_p is bounded through its square; the largest KLD is what was
    seen, without bounds."""
    tails = {"low_tail": low_tail, "high_tail": high_tail}
    if name == "kld_mean":
        return mean_bounds(damage.kld, **tails)
    if name == "rms_delta_p":
        square = mean_bounds(damage.delta_p_squared, **tails)
        root = math.sqrt(square.value)
        se = square.se / (2 * root) if root else 0.0
        return Bounds(value=root, se=se, low=math.sqrt(square.low), high=math.sqrt(square.high))
    if name in SHARES:
        return quantile_bounds(name, damage, **tails)
    if name == "top_changed":
        return rate_bounds(damage.top_changed, n_scored=damage.n_scored, **tails)
    if name == "ln_ppl_ratio":
        return signed_bounds(damage.ln_ppl_ratio, **tails)
    return Bounds(value=damage.kld_max, se=0.0, low=damage.kld_max, high=damage.kld_max)


def caution(name: str, n_chunks: int) -> float:
    """The share of the limit that a pass after so few chunks must stay inside."""
    if name in CAUTIOUS:
        for under, share in CAUTION:
            if n_chunks < under:
                return share
    return 1.0


def unseen_share(n_chunks: int, error_rate: float) -> float:
    """Damage confined to a smaller share of chunks than this may not have been met at all."""
    return float(1 - error_rate ** (1 / max(1, n_chunks)))


def chunks_to_tell(value: float, se: float, limit: float, *, n_chunks: int, tail: float) -> int | None:
    """About how many chunks would settle a damage that is `value` against its limit; None when it is on the limit."""
    if not (math.isfinite(se) and value > 0 and limit > 0) or value == limit:
        return None
    relative = se / value * math.sqrt(n_chunks)
    return math.ceil((student_t(tail, 100) * relative / math.log(limit / value)) ** 2)
