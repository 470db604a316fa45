"""From per-token scores to a verdict: pure functions. Three values, because a gate that guesses is no gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantplan.artifact.results import Metric, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantplan.pipeline.logits import TokenScores

POLICY = "quantplan/first/1"
FACTOR_OF_Q8_0 = 4.0
ABSOLUTE_KLD = 0.01  # nats a token
BOUND = 2.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over chunks with its standard error; n counts scored tokens."""

    mean: float
    se: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - BOUND * self.se

    @property
    def high(self) -> float:
        return self.mean + BOUND * self.se


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One artifact on one corpus."""

    kld: Estimate  # nats a token
    ln_ppl_ratio: Estimate
    same_top: Estimate
    rms_delta_p: float
    ppl_reference: float
    ppl_artifact: float


def estimate(values: NDArray[np.float64] | NDArray[np.bool_]) -> Estimate:
    """Mean of values of shape (n_chunk, n_scored); the chunk is the unit of the standard error, since tokens of
    one chunk are not independent. One chunk alone has an infinite error."""
    n_chunk = len(values)
    means = [float(row.mean()) for row in values]
    mean = sum(means) / n_chunk
    variance = sum((value - mean) ** 2 for value in means) / (n_chunk - 1) if n_chunk > 1 else math.inf
    return Estimate(mean=mean, se=math.sqrt(variance / n_chunk), n=int(values.size))


def reduce_scores(tokens: TokenScores) -> Scores:
    """What a gate needs of the per-token scores."""
    return Scores(
        kld=estimate(tokens.kld),
        ln_ppl_ratio=estimate(tokens.nll_artifact - tokens.nll_reference),
        same_top=estimate(tokens.same_top),
        rms_delta_p=math.sqrt(float((tokens.delta_p**2).mean())),
        ppl_reference=math.exp(float(tokens.nll_reference.mean())),
        ppl_artifact=math.exp(float(tokens.nll_artifact.mean())),
    )


def kld_limit(q8_0: Scores) -> float:
    """Four times the damage of Q8_0 of the same model, and 0.01 nats: no absolute limit fits all models."""
    return FACTOR_OF_Q8_0 * q8_0.kld.mean + ABSOLUTE_KLD


def judge(measured: Estimate, limit: float) -> Verdict:
    """Pass when the upper bound is inside the limit, fail when the lower bound is outside, else inconclusive."""
    if not (math.isfinite(measured.mean) and math.isfinite(measured.se) and math.isfinite(limit)):
        return Verdict.INCONCLUSIVE
    if measured.high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if measured.low > limit else Verdict.INCONCLUSIVE


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several: fail before inconclusive before pass; none at all is inconclusive."""
    for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS if verdicts else Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict with its reason in one sentence and every metric it rests on."""

    verdict: Verdict
    reason: str
    metrics: tuple[Metric, ...]


def judge_artifact(artifact: Mapping[str, Scores], q8_0: Mapping[str, Scores]) -> Judgement:
    """Every corpus for itself: one failing domain fails the artifact, whatever the others say."""
    metrics: list[Metric] = []
    verdicts: dict[str, Verdict] = {}
    for corpus, scores in artifact.items():
        limit = kld_limit(q8_0[corpus])
        verdicts[corpus] = judge(scores.kld, limit)
        metrics += _metrics(corpus, scores, limit)
    verdict = worst(list(verdicts.values()))
    return Judgement(verdict=verdict, reason=_reason(verdict, verdicts, artifact, q8_0), metrics=tuple(metrics))


def _metrics(corpus: str, scores: Scores, limit: float) -> list[Metric]:
    ratio, kld, top = scores.ln_ppl_ratio, scores.kld, scores.same_top
    told = (
        ("kld_mean", kld.mean, kld.se, kld.low, kld.high, limit),
        ("ppl_ratio", math.exp(ratio.mean), math.exp(ratio.mean) * ratio.se, math.exp(ratio.low),
         math.exp(ratio.high), None),
        ("same_top", top.mean, top.se, top.low, top.high, None),
        ("rms_delta_p", scores.rms_delta_p, None, None, None, None),
        ("ppl_reference", scores.ppl_reference, None, None, None, None),
        ("ppl_artifact", scores.ppl_artifact, None, None, None, None),
    )  # fmt: skip
    return [
        Metric(name=name, corpus=corpus, value=value, se=se, low=low, high=high, limit=limit, n=kld.n)
        for name, value, se, low, high, limit in told
    ]


def _reason(
    verdict: Verdict, verdicts: Mapping[str, Verdict], artifact: Mapping[str, Scores], q8_0: Mapping[str, Scores]
) -> str:
    if not verdicts:
        return "nothing was measured"
    named = [corpus for corpus, found in verdicts.items() if found is verdict] or list(verdicts)
    closest = max(named, key=lambda corpus: artifact[corpus].kld.high / kld_limit(q8_0[corpus]))
    kld, limit = artifact[closest].kld, kld_limit(q8_0[closest])
    words = {
        Verdict.PASS: "is inside the limit on every corpus; closest is",
        Verdict.FAIL: "is outside the limit on",
        Verdict.INCONCLUSIVE: "is not told apart from the limit on",
    }[verdict]
    return f"mean KLD {words} {closest}: {kld.mean:.5f} ± {BOUND * kld.se:.5f} against {limit:.5f} nats a token"
