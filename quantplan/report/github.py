"""GitHub's workflow commands: `::error file=…,line=…,title=…::message`, at most ten of a kind in a step."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.artifact.results import Finding, Severity
from quantplan.report.checks import Check, Checked, checks_of

PER_KIND = 10  # GitHub shows ten annotations of each kind a step
MESSAGE_CHARACTERS = 4000
_KINDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def github_annotations(checked: Sequence[Checked], findings: Sequence[Finding] = ()) -> list[str]:
    """The lines, errors first. Where there are more than ten of a kind, the tenth says how many are not shown."""
    checks = checks_of(checked, findings)
    lines = []
    for severity, kind in _KINDS.items():
        found = [check for check in checks if check.severity is severity]
        shown = found if len(found) <= PER_KIND else found[: PER_KIND - 1]
        lines += [_line(kind, check) for check in shown]
        if len(found) > len(shown):
            rest = len(found) - len(shown)
            lines.append(
                f"::{kind} title=quantplan::{_data(f'and {rest} more of this kind; the summary has them all')}"
            )
    return lines


def _line(kind: str, check: Check) -> str:
    properties = []
    if check.file:
        properties.append(f"file={_property(check.file)}")
        if check.line:
            properties.append(f"line={check.line}")
    title = f"{check.artifact}: {check.title}" if check.title != check.rule else check.rule
    properties.append(f"title={_property(title)}")
    words = f"{check.message}\n{check.help}" if check.help else check.message
    if check.severity is Severity.WARNING and check.verdict.value != "pass":
        words = f"{check.verdict.value}: {words}"
    return f"::{kind} {','.join(properties)}::{_data(_cut(words))}"


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 6] + " (cut)"


def _data(text: str) -> str:
    """As @actions/core escapes a command's data."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As @actions/core escapes a command's property."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
