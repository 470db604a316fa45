"""Confidence bounds for per-token damage, and what they say of a limit at one look: pure functions.

The unit is the chunk (one window of the text): its tokens share a context, so they are not independent. Each metric
has bounds of its own kind, because damage is skewed: a mean of values that are never negative is bounded on the
logarithmic scale, a share of tokens by Wilson's interval with the chunks' own design effect, a quantile by the order
statistics at that interval's ends (Woodruff). docs/gate.md says what is assumed and what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantplan.pipeline.logits import TokenScores

LEAST_CHUNKS = 20  # before the first look
LOOKS_AT = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the budget
# A few chunks may hide damage that sits in few places: an early pass must be inside this share of the limit.
CAUTION = ((40, 0.25), (80, 0.5))  # (under so many chunks, share)
WIDEST_FAIL = 0.5  # a mean whose standard error is above half of it proves nothing
LEAST_DF = 9
DEFF_WHEN_NONE_SEEN = 4.0  # a share of nought has no design effect of its own

MEANS = ("kld_mean", "rms_delta_p")
QUANTILES = {"kld_99": 0.01, "kld_999": 0.001}
RATES = ("top_changed",)
SIGNED = ("ln_ppl_ratio",)
GATED = (*MEANS, *QUANTILES, *RATES, *SIGNED, "kld_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A damage (more is worse) with its standard error and one-sided confidence bounds."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """The one-sided error rates of one look at one metric: of calling good what is outside the limit, and the other
    way. `limit` is the share of either that the limit's own uncertainty gets."""

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
    terms = (
        (z3 + z) / 4,
        (5 * z5 + 16 * z3 + 3 * z) / 96,
        (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / 384,
    )
    return float(z + sum(term / df ** (i + 1) for i, term in enumerate(terms)))


def mean_bounds(chunks: NDArray[np.float64], *, low_tail: float, high_tail: float) -> Bounds:
    """Of a mean of values that are never negative, by chunk means: exp(ln mean ± t·se/mean). Above, one more chunk as
    bad as the worst is counted in: what a heavy tail has not shown yet."""
    import numpy as np

    mean, se = _mean_se(chunks)
    if mean == 0:
        return Bounds(value=0.0, se=0.0, low=0.0, high=0.0)
    relative = se / mean
    if not math.isfinite(relative):
        return Bounds(value=mean, se=se, low=0.0, high=math.inf)
    more, more_se = _mean_se(np.append(chunks, chunks.max()))
    high = more * _exp(student_t(high_tail, len(chunks) - 1) * more_se / more)
    low = mean * math.exp(-student_t(low_tail, len(chunks) - 1) * relative) if relative <= WIDEST_FAIL else 0.0
    return Bounds(value=mean, se=se, low=low, high=high)


def ratio_bounds(
    chunks: NDArray[np.float64], others: NDArray[np.float64], *, low_tail: float, high_tail: float
) -> Bounds:
    """Of the ratio of two means over the same chunks, paired: what both have in common cancels. 1 where both are
    nought."""
    top, under = float(chunks.mean()), float(others.mean())
    if top == under == 0:
        return Bounds(value=1.0, se=0.0, low=1.0, high=1.0)
    if under <= 0 or top <= 0:
        return Bounds(value=math.inf if under <= 0 else 0.0, se=math.inf, low=0.0, high=math.inf)
    ratio = top / under
    _, relative = _mean_se(chunks / top - others / under)
    if not math.isfinite(relative):
        return Bounds(value=ratio, se=math.inf, low=0.0, high=math.inf)
    df = len(chunks) - 1
    low = ratio * math.exp(-student_t(low_tail, df) * relative) if relative <= WIDEST_FAIL else 0.0
    return Bounds(
        value=ratio, se=ratio * relative, low=low, high=ratio * _exp(student_t(high_tail, df) * relative)
    )  # fmt: skip


def signed_bounds(chunks: NDArray[np.float64], *, low_tail: float, high_tail: float) -> Bounds:
    """Of a mean that may be negative: Student's interval, shifted for skewness (Johnson 1978)."""
    mean, se = _mean_se(chunks)
    if not math.isfinite(se):
        return Bounds(value=mean, se=se, low=-math.inf, high=math.inf)
    n = len(chunks)
    third = float(((chunks - mean) ** 3).mean())
    shift = third / (6 * se**2 * n**2) if se else 0.0  # mu3 / (6 s^2 n), with se^2 = s^2 / n
    shift = math.copysign(min(abs(shift), se), shift)
    return Bounds(
        value=mean, se=se,
        low=mean + shift - student_t(low_tail, n - 1) * se,
        high=mean + shift + student_t(high_tail, n - 1) * se,
    )  # fmt: skip


def rate_bounds(hits: NDArray[np.bool_], *, low_tail: float, high_tail: float) -> Bounds:
    """Of a share of tokens, shape (n_chunk, n_scored): Wilson's interval at the effective number of tokens."""
    n_chunk, per_chunk = hits.shape
    rate, se = _mean_se(hits.mean(axis=1))
    if not math.isfinite(se):
        return Bounds(value=rate, se=se, low=0.0, high=1.0)
    independent = rate * (1 - rate) / (n_chunk * per_chunk)
    deff = max(1.0, se**2 / independent) if independent else DEFF_WHEN_NONE_SEEN
    n = n_chunk * per_chunk / deff
    low = _wilson(rate, n, -student_t(low_tail, n_chunk - 1))
    high = _wilson(rate, n, student_t(high_tail, n_chunk - 1))
    return Bounds(value=rate, se=se, low=low, high=high)


def quantile_bounds(values: NDArray[np.float64], share: float, *, low_tail: float, high_tail: float) -> Bounds:
    """Of the value that `share` of the tokens exceed. Unbounded above where too few tokens were seen for it."""
    import numpy as np

    at = float(np.quantile(values, 1 - share, method="higher"))
    above = rate_bounds(values > at, low_tail=high_tail, high_tail=low_tail)
    rate = _around(share, above, values.size)
    flat = np.sort(values, axis=None)
    high = _at_share(flat, rate.low)
    low = _at_share(flat, rate.high)
    return Bounds(value=at, se=(high - low) / 4 if math.isfinite(high) else math.inf, low=low, high=high)


def _around(share: float, above: Bounds, n: int) -> Bounds:
    """The interval of the exceeding share, taken around the share asked for: ties move the observed one."""
    moved = share - above.value if n else 0.0
    return Bounds(value=share, se=above.se, low=max(0.0, above.low + moved), high=min(1.0, above.high + moved))


def _at_share(flat: NDArray[np.float64], share: float) -> float:
    """The order statistic that `share` of the values exceed; infinite when it would be beyond the largest."""
    rank = math.floor(share * len(flat))  # so many values are larger
    return float(flat[len(flat) - 1 - rank]) if rank >= 1 else math.inf


def _wilson(rate: float, n: float, z: float) -> float:
    centre = rate + z * z / (2 * n)
    return (centre + z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def _mean_se(chunks: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard error; the latter is infinite under two chunks. Summed in sorted order: the order of the
    chunks does not move the last bit."""
    import numpy as np

    ordered = np.sort(chunks)
    n = len(ordered)
    mean = float(ordered.mean())
    if n < 2:
        return mean, math.inf
    return mean, math.sqrt(float(np.sort((ordered - mean) ** 2).sum()) / (n - 1) / n)


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf


def bounds(name: str, tokens: TokenScores, *, low_tail: float, high_tail: float) -> Bounds:
    """One gated damage of an artifact on a corpus. rms_delta_p is bounded through its square; the largest KLD is
    what was seen, without bounds."""
    tails = {"low_tail": low_tail, "high_tail": high_tail}
    if name == "kld_mean":
        return mean_bounds(_not_negative(tokens.kld.mean(axis=1)), **tails)
    if name == "rms_delta_p":
        square = mean_bounds((tokens.delta_p**2).mean(axis=1), **tails)
        root = math.sqrt(square.value)
        se = square.se / (2 * root) if root else 0.0
        return Bounds(value=root, se=se, low=math.sqrt(square.low), high=math.sqrt(square.high))
    if name in QUANTILES:
        return quantile_bounds(tokens.kld, QUANTILES[name], **tails)
    if name == "top_changed":
        return rate_bounds(~tokens.same_top, **tails)
    if name == "ln_ppl_ratio":
        return signed_bounds((tokens.nll_artifact - tokens.nll_reference).mean(axis=1), **tails)
    largest = float(tokens.kld.max())
    return Bounds(value=largest, se=0.0, low=largest, high=largest)


def _not_negative(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """A divergence is never negative; the file's 16-bit steps may leave a chunk a hair under nought."""
    import numpy as np

    return np.maximum(means, 0.0)


def caution(n_chunks: int) -> float:
    """The share of the limit that a pass after so few chunks must stay inside."""
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
