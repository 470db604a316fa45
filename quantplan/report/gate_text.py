"""A gate's result and a policy, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator

from quantplan.artifact.results import Metric, Result
from quantplan.pipeline import statistics
from quantplan.pipeline.policy import QUALITY, Limit, Policy

_TITLES = {
    "kld_mean": "mean KL divergence, nats a token",
    "kld_99": "KL divergence that 1 % of the tokens exceed",
    "kld_999": "KL divergence that 0.1 % of the tokens exceed",
    "kld_max": "largest KL divergence",
    "ppl_ratio": "perplexity over the reference's",
    "same_top": "share of tokens whose likeliest stays the same",
    "rms_delta_p": "root mean square change of the token's probability",
    "kld_of_label": "mean KL divergence over that of the same preset made here",
}


def gated(result: Result, name: str) -> str:
    """The verdict, why, and every metric that has a limit."""
    lines = [f"{name}  {result.verdict.value.upper()}  ({result.policy})", f"  {result.reason}"]
    held = [metric for metric in result.metrics if metric.verdict is not None]
    if held:
        lines.append(f"  {'metric':<22}{'text':<11}{'value':>11}{'from':>11}{'to':>11}{'limit':>11}  verdict")
        lines += [_row(metric) for metric in held]
    lines += [f"  {metric.name}: {metric.reason}" for metric in held if metric.reason]
    lines += [f"  {finding.severity.value}: {finding.message}" for finding in result.findings]
    if result.n_tokens:
        lines.append(f"  {result.n_tokens:,} tokens were scored.")
    return "\n".join(lines)


def _row(metric: Metric) -> str:
    numbers = "".join(f"{_number(x):>11}" for x in (metric.value, metric.low, metric.high, metric.limit))
    assert metric.verdict is not None
    return f"  {metric.name:<22}{metric.corpus or '':<11}{numbers}  {metric.verdict.value}"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.5g}"


def explained(policy: Policy) -> str:
    """What a policy demands, in sentences."""
    return "\n".join([*_head(policy), *_quality(policy), *_others(policy)])


def _head(policy: Policy) -> Iterator[str]:
    looks = ", ".join(str(n) for n in statistics.looks(policy.budget_chunks))
    yield f"{policy.label}: {policy.description}"
    yield ""
    yield (
        f"Each text is judged on its own, after {looks} windows; it ends as soon as the verdict stands, and is "
        f"inconclusive when the last is reached without one."
    )
    yield (
        f"The test is set to pass what is outside a limit in at most {100 * policy.error_rate:g} % of cases, to fail "
        f"what is inside in at most {100 * policy.error_rate:g} %, over all looks, metrics and texts together."
    )
    yield f"The reference's own perplexity must be at most {policy.reference_ppl_at_most:g} on every text."


def _quality(policy: Policy) -> Iterator[str]:
    yield ""
    yield "Quality, on every text:"
    yield from _limits(policy.quality)
    for corpus, limits in policy.corpora.items():
        yield f"Quality on {corpus} instead:"
        yield from _limits(limits)


def _limits(limits: object) -> Iterator[str]:
    assert isinstance(limits, dict)
    names = {damage: name for name, (damage, _) in QUALITY.items()}
    for damage, limit in limits.items():
        yield f"  {names[damage]}: {_TITLES[names[damage]]}: {_limit(names[damage], limit)}"


def _limit(name: str, limit: Limit) -> str:
    start = {
        "same_top": f"at least {1 - limit.absolute:g}",
        "ppl_ratio": f"at most {math.exp(limit.absolute):g}",
    }.get(name, f"at most {limit.absolute:g}")
    what = "the share that changes" if name == "same_top" else "its logarithm" if name == "ppl_ratio" else "it"
    more = [f"{factor:g} × that of {of}" for factor, of in ((limit.of_floor, "the floor"), (limit.of_q8_0, "Q8_0"))
            if factor]  # fmt: skip
    if not more:
        return start
    held = ""
    if math.isfinite(limit.ceiling):
        ceiling = math.exp(limit.ceiling) if name == "ppl_ratio" else limit.ceiling
        held = f" (that held under {ceiling:g}, but never under twice Q8_0's)"
    return f"{start}, or {what} at most {' or '.join(more)}{held}, whichever is wider"


def _others(policy: Policy) -> Iterator[str]:
    found = [
        f"  {name}: {'at least' if name in ('decode', 'prefill') else 'at most'} {ratio.limit:g} × the {ratio.against}"
        for name, ratio in policy.performance.items()
    ]
    if policy.scan_at_most:
        found.append(f"  scan: nothing above {policy.scan_at_most}")
    found += ["  receipt: complete"] if policy.receipt else []
    found += ["  signature: required"] if policy.signature else []
    found += ["  chat template: the reference's, to the letter"] if policy.template_parity else []
    found += [f"  size: {key} {limit:g}" for key, limit in policy.size.items()]
    if found:
        yield ""
        yield "Beside quality (a limit whose result file is missing is inconclusive):"
        yield from found
