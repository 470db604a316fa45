"""How a rule says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Finding, Severity
from quantplan.serving.lint.source import Source

Rule = Callable[[Source, "Plan | None"], Iterable[Finding]]


def error(source: Source, rule: str, line: int | None, message: str, help: str) -> Finding:  # noqa: A002
    """It does not work, or it is open to strangers."""
    return _told(Severity.ERROR, source, rule, line, message, help)


def warning(source: Source, rule: str, line: int | None, message: str, help: str) -> Finding:  # noqa: A002
    """It works otherwise than its writer thinks."""
    return _told(Severity.WARNING, source, rule, line, message, help)


def note(source: Source, rule: str, line: int | None, message: str, help: str) -> Finding:  # noqa: A002
    """Worth knowing."""
    return _told(Severity.NOTE, source, rule, line, message, help)


def _told(severity: Severity, source: Source, rule: str, line: int | None, message: str, told: str) -> Finding:
    return Finding(rule=f"lint/{rule}", severity=severity, message=message, file=source.path, line=line or 1, help=told)
