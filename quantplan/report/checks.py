"""Results and findings as one list of checks: what JUnit, SARIF, annotations and Markdown all render."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantplan.artifact.results import Finding, Metric, Result, Severity, Verdict

TITLES = {
    "kld_mean": "mean KL divergence",
    "kld_99": "99 % of KL divergence",
    "kld_999": "99.9 % of KL divergence",
    "kld_max": "largest KL divergence",
    "kld_of_label": "KL divergence against its label's",
    "ppl_ratio": "perplexity ratio",
    "same_top": "same top token",
    "rms_delta_p": "RMS change of probability",
}
NOT_PASSED = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.UNMEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One artifact and one result of it. `file` is the model's path as the CI's workspace knows it."""

    name: str
    result: Result
    file: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was asked, and its answer. `severity` is None for what passed."""

    rule: str
    title: str
    artifact: str
    verdict: Verdict
    severity: Severity | None
    message: str
    file: str | None = None
    line: int | None = None
    help: str | None = None
    where: str | None = None
    offset: int | None = None

    @property
    def words(self) -> str:
        """The message, and what to do about it."""
        return f"{self.message} ({self.help})" if self.help else self.message


def checks_of(checked: Sequence[Checked], findings: Sequence[Finding] = ()) -> tuple[Check, ...]:
    """Every limit and every finding of the results, in their order, then findings that belong to no result."""
    told = [check for one in checked for check in _of_result(one)]
    return (*told, *(_of_finding(finding, artifact="files", file=None) for finding in findings))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several: error before fail before inconclusive before pass; nothing at all is unmeasured."""
    seen = set(verdicts)
    for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNMEASURED, Verdict.PASS):
        if verdict in seen:
            return verdict
    return Verdict.UNMEASURED


def metric_verdict(metric: Metric, result: Result) -> Verdict | None:
    """The metric's own verdict; of a result that has none by metric, where its bounds lie. None without a limit."""
    if metric.verdict is not None:
        return metric.verdict
    if metric.limit is None:
        return None
    if metric.value is None or metric.low is None or metric.high is None:
        return result.verdict if result.verdict is not Verdict.PASS else Verdict.UNMEASURED
    low, high = (metric.low, metric.high) if metric.limit_is != "min" else (-metric.high, -metric.low)
    limit = metric.limit if metric.limit_is != "min" else -metric.limit
    if high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE


def metric_text(metric: Metric) -> str:
    """`0.00102 ± 0.00012, limit 0.00412 (5,100 tokens)`; the ± is two standard errors."""
    if metric.value is None:
        return metric.reason or "not measured"
    text = f"{metric.value:.5g}"
    if metric.se is not None:
        text += f" ± {2 * metric.se:.2g}"
    if metric.limit is not None:
        text += f", limit {'at least ' if metric.limit_is == 'min' else ''}{metric.limit:.5g}"
    if metric.n:
        text += f" ({metric.n:,} tokens)"
    return f"{text}: {metric.reason}" if metric.reason else text


def _of_result(one: Checked) -> Iterable[Check]:
    kind = one.result.kind or "gate"
    found = []
    for metric in one.result.metrics:
        verdict = metric_verdict(metric, one.result)
        if verdict is not None:
            found.append(_of_metric(one, metric, verdict, kind))
    found += [_of_finding(finding, artifact=one.name, file=one.file) for finding in one.result.findings]
    untold = one.result.verdict in NOT_PASSED and all(check.verdict is Verdict.PASS for check in found)
    if untold or not found:
        found.append(_overall(one, kind))
    return found


def _of_metric(one: Checked, metric: Metric, verdict: Verdict, kind: str) -> Check:
    where = f" on {metric.corpus}" if metric.corpus else ""
    return Check(
        rule=f"{kind}/{metric.name}",
        title=f"{TITLES.get(metric.name, metric.name.replace('_', ' '))}{where}",
        artifact=one.name,
        verdict=verdict,
        severity=_severity(verdict),
        message=metric_text(metric),
        file=one.file,
    )


def _of_finding(finding: Finding, *, artifact: str, file: str | None) -> Check:
    return Check(
        rule=finding.rule,
        title=finding.rule,
        artifact=artifact,
        verdict=Verdict.FAIL if finding.severity is Severity.ERROR else Verdict.PASS,
        severity=finding.severity,
        message=finding.message,
        file=finding.file or file,
        line=finding.line,
        help=finding.help,
        where=finding.where,
        offset=finding.offset,
    )


def _overall(one: Checked, kind: str) -> Check:
    return Check(
        rule=f"{kind}/verdict",
        title="verdict",
        artifact=one.name,
        verdict=one.result.verdict,
        severity=_severity(one.result.verdict),
        message=one.result.reason or one.result.verdict.value,
        file=one.file,
    )


def _severity(verdict: Verdict) -> Severity | None:
    if verdict is Verdict.PASS:
        return None
    return Severity.WARNING if verdict in (Verdict.INCONCLUSIVE, Verdict.UNMEASURED) else Severity.ERROR
