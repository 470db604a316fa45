"""Markdown of results: GitHub's step summary (at most 1 MiB) and the comment of a pull or merge request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from quantplan.artifact.results import Finding, Severity, Verdict
from quantplan.report.checks import Check, Checked, checks_of, metric_text, worst

SUMMARY_BYTES = 1024 * 1024  # GitHub drops a step's summary that is larger
COMMENT_CHARACTERS = 65_536  # GitHub's comment; GitLab takes 1,000,000
MARKER = "<!-- quantplan -->"  # by this a bot finds its comment again
_SIGNS = {
    Verdict.PASS: "✅ pass", Verdict.FAIL: "❌ fail", Verdict.INCONCLUSIVE: "❔ inconclusive",
    Verdict.ERROR: "❌ error", Verdict.UNMEASURED: "➖ unmeasured",
}  # fmt: skip
_CUT = "\n\n**Cut here: {n} of {of} lines did not fit; the JSON and JUnit outputs have them all.**\n"


def markdown(checked: Sequence[Checked], findings: Sequence[Finding] = (), *, limit: int = COMMENT_CHARACTERS) -> str:
    """A comment: the verdict, a table of artifacts, then the checks of each. At most `limit` characters."""
    return _fit(_lines(checked, findings), room=limit, size=len)


def step_summary(checked: Sequence[Checked], findings: Sequence[Finding] = (), *, used_bytes: int = 0) -> str:
    """The same for a step summary that holds `used_bytes` already: together at most 1 MiB, cut at a line."""
    return _fit(_lines(checked, findings), room=SUMMARY_BYTES - used_bytes, size=lambda text: len(text.encode()))


def _lines(checked: Sequence[Checked], findings: Sequence[Finding]) -> list[str]:
    checks = checks_of(checked, findings)
    overall = worst([*(one.result.verdict for one in checked), *(_as_verdict(f) for f in findings)])
    lines = [MARKER, f"### quantplan: {_SIGNS[overall]}", ""]
    if checked:
        lines += ["| artifact | verdict | why | tokens |", "|---|---|---|---|", *map(_row, checked), ""]
    for one in checked:
        lines += _section(one)
    loose = checks[len(checks) - len(findings) :] if findings else ()
    if loose:
        lines += ["#### Findings", "", *map(_finding_line, loose), ""]
    return lines


def _as_verdict(finding: Finding) -> Verdict:
    return Verdict.FAIL if finding.severity is Severity.ERROR else Verdict.PASS


def _row(one: Checked) -> str:
    result = one.result
    tokens = f"{result.n_tokens:,}" if result.n_tokens is not None else ""
    return f"| {cell(one.name)} | {_SIGNS[result.verdict]} | {cell(result.reason or '')} | {tokens} |"


def _section(one: Checked) -> list[str]:
    opened = " open" if one.result.verdict is not Verdict.PASS else ""
    lines = [
        f"<details{opened}><summary>{escape(one.name)}</summary>", "",
        f"sha256 {cell(one.result.artifact_sha256)}"
        + (f", policy {cell(one.result.policy)}" if one.result.policy else ""), "",
        "| check | verdict | measured |", "|---|---|---|",
    ]  # fmt: skip
    lines += [_check_row(check) for check in checks_of((one,))]
    for metric in one.result.metrics:
        if metric.limit is None and metric.verdict is None and metric.value is not None:
            where = f" on {metric.corpus}" if metric.corpus else ""
            lines.append(f"| {cell(metric.name + where)} | reported | {cell(metric_text(metric))} |")
    return [*lines, "", "</details>", ""]


def _check_row(check: Check) -> str:
    sign = (
        _SIGNS[check.verdict]
        if check.verdict is not Verdict.PASS or not check.severity
        else "⚠️ " + check.severity.value
    )
    return f"| {cell(check.title)} | {sign} | {cell(check.words)} |"


def _finding_line(check: Check) -> str:
    where = f" {cell(check.file)}{f':{check.line}' if check.line else ''}" if check.file else ""
    return f"- **{(check.severity or Severity.NOTE).value}** {cell(check.rule)}{where}: {cell(check.words)}"


def cell(text: str) -> str:
    """Text that stays one table cell and is no markup: names in files are somebody else's input."""
    told = " ".join(text.split())
    for mark in "\\`*_[]|~":
        told = told.replace(mark, f"\\{mark}")
    return told.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")


def _fit(lines: Sequence[str], *, room: int, size: Callable[[str], int]) -> str:
    """As many whole lines as fit, and a word on the rest."""
    whole = "\n".join(lines) + "\n"
    if size(whole) <= room:
        return whole
    left = room - size(_CUT.format(n=len(lines), of=len(lines)))
    kept: list[str] = []
    for line in lines:
        left -= size(line) + 1
        if left < 0:
            break
        kept.append(line)
    open_details = sum(line.startswith("<details") for line in kept) - kept.count("</details>")
    if open_details and kept:  # the details that were cut open are closed again
        while not kept[-1].startswith("<details"):
            kept.pop()
        kept.pop()
    return "\n".join(kept) + _CUT.format(n=len(lines) - len(kept), of=len(lines)) if room > 200 else ""
