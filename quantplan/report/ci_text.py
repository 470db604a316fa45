"""Results for a CI as text and as the data of `report --json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantplan.artifact.results import Verdict
from quantplan.report.checks import Check, Checked


def ci_data(verdict: str, checked: Sequence[Checked]) -> dict[str, Any]:
    """The contract: the worst verdict, and every result as it was written."""
    told = [{"name": one.name, "file": one.file, "result": one.result} for one in checked]
    return {"verdict": verdict, "results": told}


def ci_text(verdict: str, checks: Sequence[Check]) -> str:
    """A line a check that did not pass, then the count and the verdict."""
    lines = [_line(check) for check in checks if check.severity is not None]
    passed = sum(check.verdict is Verdict.PASS for check in checks)
    return "\n".join([*lines, f"{passed} of {len(checks)} checks passed: {verdict}"])


def _line(check: Check) -> str:
    word = check.verdict.value if check.verdict is not Verdict.PASS else (check.severity or check.verdict).value
    return f"{check.artifact}: {check.title}: {word}: {check.words}"
