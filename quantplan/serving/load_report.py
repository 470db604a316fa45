"""What a load check says of a plan: figures, the promise, the verdict. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Metric, Result, Verdict
from quantplan.serving.load import LoadRequest, Shot

MIN_GOOD_SHARE = 0.95  # of the requests: a promise is for nearly all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What each request may take at most; None where nothing is promised."""

    ttft_s: float | None
    per_token_s: float | None


def promise_of(plan: Plan, asked: LoadRequest) -> Promise:
    """From the plan's lowest predicted speeds, for all streams at once: the last prompt is read after all others, and
    the tokens are shared by all."""
    prefill, decode = plan.prefill_tokens_per_s, plan.decode_tokens_per_s
    return Promise(
        ttft_s=asked.n_streams * asked.n_prompt / prefill.low if prefill and prefill.low > 0 else None,
        per_token_s=asked.n_streams / decode.low if decode and decode.low > 0 else None,
    )


def is_good(shot: Shot, promise: Promise) -> bool:
    """Whether it was answered within the promise."""
    if shot.error is not None or shot.ttft_s is None:
        return False
    if promise.ttft_s is not None and shot.ttft_s > promise.ttft_s:
        return False
    per_token = shot.per_token_s
    return promise.per_token_s is None or per_token is None or per_token <= promise.per_token_s


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def judge(shots: Sequence[Shot], seconds: float, promise: Promise) -> tuple[Verdict, str]:
    """Errors fail; so does a promise that fewer than MIN_GOOD_SHARE of the requests were given."""
    done = [shot for shot in shots if shot.error is None]
    if not done:
        first = shots[0].error if shots else "nothing was sent"
        return Verdict.ERROR, f"no request was answered: {first}"
    if len(done) < len(shots):
        errors = Counter(shot.error for shot in shots if shot.error is not None)
        common, times = errors.most_common(1)[0]
        return Verdict.FAIL, f"{len(shots) - len(done)} of {len(shots)} requests failed; {times} times: {common}"
    if promise.ttft_s is None and promise.per_token_s is None:
        return Verdict.PASS, f"all {len(shots)} requests were answered; the plan promises no speed"
    good = sum(is_good(shot, promise) for shot in shots)
    told = f"{good} of {len(shots)} requests were answered within the promise"
    return (Verdict.PASS if good >= MIN_GOOD_SHARE * len(shots) else Verdict.FAIL), told


def metrics_of(
    shots: Sequence[Shot], seconds: float, promise: Promise, memory: Mapping[str, int | None]
) -> tuple[Metric, ...]:
    """Every figure, with the promise as its limit where there is one. Seconds, tokens a second, bytes, counts."""
    done = [shot for shot in shots if shot.error is None]
    ttft = [shot.ttft_s for shot in done if shot.ttft_s is not None]
    per_token = [shot.per_token_s for shot in done if shot.per_token_s is not None]
    good = [shot for shot in done if is_good(shot, promise)]
    rows: list[tuple[str, float | None, float | None, int]] = [
        ("requests", len(shots), None, len(shots)),
        ("errors", len(shots) - len(done), 0, len(shots)),
        ("refused", sum(shot.refused for shot in shots), None, len(shots)),
        ("ttft_p50_s", percentile(ttft, 0.5), None, len(ttft)),
        ("ttft_p95_s", percentile(ttft, 0.95), promise.ttft_s, len(ttft)),
        ("ttft_p99_s", percentile(ttft, 0.99), None, len(ttft)),
        ("per_token_p50_s", percentile(per_token, 0.5), None, len(per_token)),
        ("per_token_p95_s", percentile(per_token, 0.95), promise.per_token_s, len(per_token)),
        ("request_p95_s", percentile([shot.whole_s for shot in done], 0.95), None, len(done)),
        ("decode_tokens_per_s", sum(shot.n_answer for shot in done) / seconds, None, len(done)),
        ("goodput_requests_per_s", len(good) / seconds, None, len(good)),
        ("goodput_tokens_per_s", sum(shot.n_answer for shot in good) / seconds, None, len(good)),
        ("goodput_share", len(good) / len(shots) if shots else None, MIN_GOOD_SHARE, len(shots)),
        ("prompt_tokens_p50", percentile([shot.n_prompt for shot in done if shot.n_prompt], 0.5), None, len(done)),
        *((name, value, None, 1) for name, value in memory.items()),
    ]
    return tuple(_metric(name, value, limit, n) for name, value, limit, n in rows if value is not None)


def _metric(name: str, value: float, limit: float | None, n: int) -> Metric:
    if limit is None:
        return Metric(name=name, corpus=None, value=value, se=None, low=None, high=None, limit=None, n=n)
    least = name == "goodput_share"
    margin = value - limit if least else limit - value
    return Metric(
        name=name, corpus=None, value=value, se=None, low=None, high=None, limit=limit, n=n,
        limit_is="min" if least else "max", margin=margin, verdict=Verdict.PASS if margin >= 0 else Verdict.FAIL,
    )  # fmt: skip


def result_of(
    shots: Sequence[Shot], seconds: float, *, asked: LoadRequest, promise: Promise, memory: Mapping[str, int | None],
    artifact_sha256: str, tool: Mapping[str, Any], host: Mapping[str, Any], made_at: str,
) -> Result:  # fmt: skip
    """The whole as a result of kind load."""
    verdict, reason = judge(shots, seconds, promise)
    return Result(
        artifact_sha256=artifact_sha256, policy=None, verdict=verdict, reason=reason, kind="load", made_at=made_at,
        metrics=metrics_of(shots, seconds, promise, memory),
        tool={**tool, "n_streams": asked.n_streams, "n_prompt": asked.n_prompt, "n_answer": asked.n_answer,
              "n_requests": asked.n_requests, "seconds": round(seconds, 3)},
        host=dict(host), n_tokens=sum(shot.n_answer for shot in shots),
    )  # fmt: skip
