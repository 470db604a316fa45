"""SARIF 2.1.0 for code scanning: what failed, what stays open, and what the checks were."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from quantplan import __version__
from quantplan.artifact.results import Finding, Result, Severity, Verdict
from quantplan.report.checks import TITLES, Check, Checked, checks_of

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
NO_FILE = "artifact.json"  # a result without a place is refused by code scanning

# SARIF 2.1.0, 3.27.9: "open" is evaluated without enough to decide; its level is then "none" (3.27.10)
_OPEN = frozenset({Verdict.INCONCLUSIVE, Verdict.UNMEASURED})


def sarif(checked: Sequence[Checked], findings: Sequence[Finding] = ()) -> dict[str, Any]:
    """The log as JSON's own types. Passed checks are left out, since readers take every result for an alert."""
    checks = [check for check in checks_of(checked, findings) if check.severity is not None]
    rules = tuple(dict.fromkeys(check.rule for check in checks))
    driver = {
        "name": "quantplan",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(rule, next(check for check in checks if check.rule == rule)) for rule in rules],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [_invocation(checks)],
        "artifacts": [_artifact(one) for one in checked if one.file],
        "results": [_result(check, rules) for check in checks],
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: str, check: Check) -> dict[str, Any]:
    kind, _, name = rule.partition("/")
    title = TITLES.get(name, name.replace("_", " ").replace("-", " ")) or rule
    told: dict[str, Any] = {
        "id": rule,
        "shortDescription": {"text": f"{kind}: {title}"},
        "properties": {"tags": [kind]},
    }
    if check.help:
        told["help"] = {"text": check.help}
    return told


def _invocation(checks: Sequence[Check]) -> dict[str, Any]:
    """Whether every check could be made; those that could not are said as the tool's own errors."""
    broken = [check for check in checks if check.verdict is Verdict.ERROR]
    told: dict[str, Any] = {"executionSuccessful": not broken}
    if broken:
        told["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": f"{check.artifact}: {check.message}"}} for check in broken
        ]
    return told


def _artifact(one: Checked) -> dict[str, Any]:
    told: dict[str, Any] = {"location": {"uri": uri_of(one.file or "")}, "roles": ["analysisTarget"]}
    if _is_sha256(one.result):
        told["hashes"] = {"sha-256": one.result.artifact_sha256}
    return told


def _is_sha256(result: Result) -> bool:
    return len(result.artifact_sha256) == 64


def _result(check: Check, rules: Sequence[str]) -> dict[str, Any]:
    open_ = check.verdict in _OPEN
    level = "none" if open_ else (check.severity or Severity.NOTE).value
    words = f"{check.artifact}: {check.title}: {check.message}" if check.title != check.rule else check.message
    return {
        "ruleId": check.rule,
        "ruleIndex": rules.index(check.rule),
        "kind": "open" if open_ else "fail",
        "level": level,
        "message": {"text": words},
        "locations": [_location(check)],
        "partialFingerprints": {"quantplanCheck/v1": _fingerprint(check)},
        "properties": {"verdict": check.verdict.value, "artifact": check.artifact},
    }


def _location(check: Check) -> dict[str, Any]:
    """The file with line and byte, and the key, tensor or member inside it as a logical location."""
    region: dict[str, Any] = {"startLine": check.line or 1}
    if check.offset is not None:
        region["byteOffset"] = check.offset
    told: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": uri_of(check.file or NO_FILE)}, "region": region}
    }
    if check.where:
        told["logicalLocations"] = [{"fullyQualifiedName": check.where}]
    return told


def _fingerprint(check: Check) -> str:
    """The same check of the same artifact is the same alert, whatever the figure."""
    place = f"{check.rule}\0{check.title}\0{check.artifact}\0{check.file}\0{check.line}"
    if check.where or check.offset is not None:
        place += f"\0{check.where}\0{check.offset}"
    return hashlib.sha256(place.encode()).hexdigest()[:32]


def uri_of(path: str) -> str:
    """A relative reference (RFC 3986) for a path: characters that a URI may not hold are escaped."""
    if path.startswith("/"):
        return "file://" + quote(path)
    return quote(path.removeprefix("./"))
