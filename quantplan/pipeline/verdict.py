"""From per-token scores to a verdict under a policy: pure functions. Three values, because a gate that guesses is no
gate. docs/gate.md has the test, its error rate and what is assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.results import Finding, Metric, Severity, Verdict
from quantplan.pipeline import statistics
from quantplan.pipeline.damage import Damage
from quantplan.pipeline.policy import Limit, Policy
from quantplan.pipeline.statistics import Bounds, Errors

OF_LABEL = "kld_of_label"
REPORTED = ("kld_mean", "kld_99", "kld_999", "kld_max", "ln_ppl_ratio", "top_changed", "rms_delta_p")
_SHOWN = {"ln_ppl_ratio": "ppl_ratio", "top_changed": "same_top"}
_UNITS = {"kld_mean": " nats a token", "kld_99": " nats", "kld_999": " nats", "kld_max": " nats"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict with its reason in one sentence and everything it rests on. `n_tokens` scored tokens were needed."""

    verdict: Verdict
    reason: str
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...] = ()
    n_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScores:
    """An artifact on one corpus so far, and what its limits are relative to; None where that was not measured."""

    artifact: Damage
    q8_0: Damage | None = None
    floor: Damage | None = None
    label: Damage | None = None  # the same preset made here; the artifact's own where the weights are the same

    @property
    def n_chunks(self) -> int:
        return self.artifact.n_chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusJudgement:
    """One corpus at one look."""

    corpus: str
    verdict: Verdict
    metrics: tuple[Metric, ...]
    n_chunks: int
    n_tokens: int

    @property
    def deciding(self) -> Metric | None:
        """The metric that its verdict hangs on: of those that share it, the one furthest out."""
        held = [m for m in self.metrics if m.verdict is self.verdict and not (m.name == OF_LABEL and m.se == 0)]
        return max(held, key=_share_of_limit) if held else None


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several: error, fail, inconclusive, pass; none at all is inconclusive."""
    for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNMEASURED):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS if verdicts else Verdict.INCONCLUSIVE


def judge_corpus(corpus: str, scores: CorpusScores, policy: Policy, errors: Errors) -> CorpusJudgement:
    """Every metric of one corpus at one look."""
    limits = policy.limits(corpus)
    metrics = [_metric(corpus, name, scores, limits.get(name), errors) for name in REPORTED]
    if scores.label is not None:
        metrics.append(_metric(corpus, OF_LABEL, scores, limits.get(OF_LABEL), errors))
    found = [metric.verdict for metric in metrics if metric.verdict is not None]
    return CorpusJudgement(
        corpus=corpus, verdict=worst(found), metrics=(*metrics, *_context(corpus, scores, errors)),
        n_chunks=scores.n_chunks, n_tokens=scores.artifact.n_tokens,
    )  # fmt: skip


def _metric(corpus: str, name: str, scores: CorpusScores, limit: Limit | None, errors: Errors) -> Metric:
    found = _bounds(name, scores, errors)
    n = scores.artifact.n_tokens
    if limit is None:
        return _shown(name, corpus, found, n=n, limit=None)
    least, most, about = _limit_bounds(name, scores, limit, errors)
    itself = limit.of_q8_0 > 1 and scores.q8_0 is not None and scores.q8_0.kld == scores.artifact.kld
    held = least * statistics.caution(name, scores.n_chunks)
    if not math.isfinite(about):
        verdict = Verdict.INCONCLUSIVE
    else:  # Q8_0 is inside a multiple of itself, whatever it is
        verdict = Verdict.PASS if itself and math.isfinite(found.value) else call(found, held=held, most=most)
    margin = most - found.low if verdict is Verdict.FAIL else held - found.high
    reason = None
    if verdict is Verdict.INCONCLUSIVE and found.high <= least:
        reason = f"inside the limit, but {scores.n_chunks} chunks are few for a pass so near to it"
    return _shown(name, corpus, found, n=n, limit=about, verdict=verdict, margin=margin, reason=reason)


def call(found: Bounds, *, held: float, most: float) -> Verdict:
    """Pass when the upper bound is inside the least that the limit may be, fail when the lower bound is outside the
    most, else inconclusive."""
    if not math.isfinite(found.value):
        return Verdict.INCONCLUSIVE
    if found.high <= held:
        return Verdict.PASS
    return Verdict.FAIL if found.low > most else Verdict.INCONCLUSIVE


def _bounds(name: str, scores: CorpusScores, errors: Errors) -> Bounds:
    tails = {"low_tail": errors.wrong_fail, "high_tail": errors.wrong_pass}
    if name != OF_LABEL or scores.label is None:
        return statistics.bounds(name, scores.artifact, **tails)
    return statistics.ratio_bounds(scores.artifact.kld, scores.label.kld, **tails)


def _limit_bounds(
    name: str, scores: CorpusScores, limit: Limit, errors: Errors
) -> tuple[float, float, float]:  # fmt: skip
    """The least and the most that the limit may be, given what its baselines measured, and its point estimate.
    A baseline that was asked for and not measured leaves the limit unbounded above: no fail then."""
    sides: dict[str, list[float | None]] = {"low": [], "high": [], "value": []}
    unknown = False
    for factor, tokens in ((limit.of_floor, scores.floor), (limit.of_q8_0, scores.q8_0)):
        measured = None
        if factor > 0 and tokens is None:
            unknown = True
        elif factor > 0 and tokens is not None:
            measured = statistics.bounds(name, tokens, low_tail=errors.wrong_pass, high_tail=errors.wrong_fail)
        for side, kept in sides.items():
            kept.append(getattr(measured, side) if measured else None)
    least, most, about = (limit.of(floor=sides[side][0], q8_0=sides[side][1]) for side in ("low", "high", "value"))
    return least, math.inf if unknown else most, about


def _shown(
    name: str, corpus: str, found: Bounds, *, n: int, limit: float | None, verdict: Verdict | None = None,
    margin: float | None = None, reason: str | None = None,
) -> Metric:  # fmt: skip
    """The metric as people read it: a ratio of perplexities, a share that stays the same. Bounds that are not
    finite are left out."""
    value, se, low, high, side = found.value, found.se, found.low, found.high, "max"
    if name == "ln_ppl_ratio":
        value, low, high = (math.exp(min(x, 700)) if x > -math.inf else 0.0 for x in (value, low, high))
        se = value * se
        if limit is not None and margin is not None:
            limit, margin = math.exp(limit), math.exp(limit) * margin
    elif name == "top_changed":
        value, low, high, side = 1 - value, 1 - high, 1 - low, "min"
        limit = None if limit is None else max(0.0, 1 - limit)
    finite = [x if x is not None and math.isfinite(x) else None for x in (se, low, high, limit, margin)]
    return Metric(
        name=_SHOWN.get(name, name), corpus=corpus, value=value if math.isfinite(value) else None, se=finite[0],
        low=finite[1], high=finite[2], limit=finite[3], n=n, limit_is=side if limit is not None else None,
        verdict=verdict, margin=finite[4], reason=reason,
    )  # fmt: skip


def _context(corpus: str, scores: CorpusScores, errors: Errors) -> list[Metric]:
    """What is told beside the gated metrics: perplexities, and the damage that limits are relative to."""
    n = scores.artifact.n_tokens
    plain = [
        ("ppl_reference", scores.artifact.nll_reference),
        ("ppl_artifact", scores.artifact.nll_artifact),
    ]
    told = [
        Metric(name=name, corpus=corpus, value=math.exp(min(nll, 700)), se=None, low=None, high=None, limit=None, n=n)
        for name, nll in plain
    ]
    for name, tokens in (("kld_mean_q8_0", scores.q8_0), ("kld_mean_floor", scores.floor)):
        if tokens is not None:
            found = statistics.bounds(
                "kld_mean", tokens, low_tail=errors.wrong_pass, high_tail=errors.wrong_fail
            )  # fmt: skip
            told.append(_shown(name, corpus, found, n=tokens.n_tokens, limit=None))
    return told


def _share_of_limit(metric: Metric) -> float:
    """How much of its limit a metric takes, by the bound that decides; more than 1 is outside."""
    if metric.limit is None or metric.value is None:
        return 0.0
    high = metric.high if metric.high is not None else math.inf
    low = metric.low if metric.low is not None else 0.0
    if metric.limit_is == "min":
        return (1 - low) / max(1 - metric.limit, 1e-12)
    base = 1.0 if metric.name == "ppl_ratio" else 0.0
    bound = low if metric.verdict is Verdict.FAIL else high
    return (bound - base) / max(metric.limit - base, 1e-12)


def conclude(
    judged: Sequence[CorpusJudgement], *, policy: Policy, others: Sequence[Metric] = (),
    findings: Sequence[Finding] = (),
) -> Judgement:  # fmt: skip
    """The verdict over all corpora and over the policy's other sections (`others`): one failing domain fails the
    artifact, whatever the rest says."""
    verdicts = [one.verdict for one in judged] + [m.verdict for m in others if m.verdict is not None]
    verdict = worst(verdicts)
    metrics = tuple(metric for one in judged for metric in one.metrics)
    notes = (*findings, *_limits_of_sight(judged, policy)) if judged else tuple(findings)
    return Judgement(
        verdict=verdict, reason=_reason(verdict, judged, others), metrics=(*metrics, *others), findings=notes,
        n_tokens=sum(one.n_tokens for one in judged),
    )  # fmt: skip


def _reason(verdict: Verdict, judged: Sequence[CorpusJudgement], others: Sequence[Metric]) -> str:
    for metric in others:
        if metric.verdict is verdict and verdict is not Verdict.PASS:
            return metric.reason or f"{metric.name} is {metric.verdict.value}"
    deciding = [(one, one.deciding) for one in judged if one.verdict is verdict]
    named = [(one, metric) for one, metric in deciding if metric is not None]
    if not named:
        return "nothing was measured" if not judged else f"{len(judged)} corpora were measured"
    one, metric = max(named, key=lambda pair: _share_of_limit(pair[1]))
    start = {
        Verdict.PASS: f"every metric is inside its limit on every corpus; closest is {metric.name} on",
        Verdict.FAIL: f"{metric.name} is outside its limit on",
    }.get(verdict, f"{metric.name} is not told apart from its limit on")
    said = f"{start} {metric.corpus}: {_in_words(metric)}, {one.n_chunks} chunks"
    return f"{said} ({metric.reason})" if metric.reason else said


def _in_words(metric: Metric) -> str:
    def number(x: float | None) -> str:
        return "?" if x is None else f"{x:.5f}"

    return (
        f"{number(metric.value)} (between {number(metric.low)} and {number(metric.high)}) against "
        f"{number(metric.limit)}{_UNITS.get(metric.name, '')}"
    )


def _limits_of_sight(judged: Sequence[CorpusJudgement], policy: Policy) -> tuple[Finding, ...]:
    """What a pass does not say. A gate that keeps it to itself would sell what it cannot see as health."""
    seen = [m for one in judged for m in one.metrics if m.name == "kld_mean" and m.limit is not None]
    if not seen:
        return ()
    few = min(one.n_chunks for one in judged)
    hidden = statistics.unseen_share(few, policy.error_rate)
    least = min((m.limit - m.value for m in seen if m.limit is not None and m.value is not None), default=0.0)
    if least <= 0:
        return ()
    return (
        Finding(
            rule="gate/not-detectable", severity=Severity.NOTE,
            message=f"not detectable at this budget: damage that adds less than about {least:.4f} nats a token to "
            f"the mean KLD stays inside the limits, and damage in fewer than {100 * hidden:.0f} % of the windows of "
            f"a text may not have been met",
            help="a stricter policy, or more text; a changed file is found by its sha256",
        ),
    )  # fmt: skip


def errors_of(policy: Policy, *, corpora: Sequence[str]) -> Errors:
    """The policy's error rate over its looks, metrics and corpora."""
    n_tests = sum(len(policy.limits(corpus)) for corpus in corpora)
    n_looks = len(statistics.looks(policy.budget_chunks))
    return statistics.errors_per_look(policy.error_rate, n_looks=n_looks, n_tests=max(1, n_tests))


def chunks_needed(judged: CorpusJudgement, errors: Errors) -> int:
    """About how many chunks would settle an undecided corpus; at least what a pass near its limit asks for."""
    least = statistics.CAUTION[-1][0]
    needs = [least]
    for metric in judged.metrics:
        if metric.verdict is not Verdict.INCONCLUSIVE or None in (metric.value, metric.se, metric.limit):
            continue
        assert metric.value is not None
        assert metric.se is not None
        assert metric.limit is not None
        value, limit = metric.value, metric.limit
        if metric.limit_is == "min":
            value, limit = 1 - value, 1 - limit
        elif metric.name == "ppl_ratio":
            value, limit = max(value - 1, 1e-9), limit - 1
        need = statistics.chunks_to_tell(value, metric.se, limit, n_chunks=judged.n_chunks, tail=errors.wrong_fail)
        needs.append(min(need or 100_000, 100_000))
    return max(needs)


def log_of(perplexity: float) -> float:
    """Nats a token of a perplexity."""
    return math.log(perplexity)


def exp_of(nll: float) -> float:
    """Perplexity of nats a token, bounded where a float ends."""
    return math.exp(min(nll, 700))
