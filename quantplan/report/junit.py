"""JUnit XML as Jenkins, GitLab and GitHub's reporters read it: one suite an artifact, one case a check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from quantplan.artifact.results import Finding, Severity, Verdict
from quantplan.report.checks import Check, Checked, checks_of

# XML 1.0 has no other characters; a name in a file is somebody else's input.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENT = {
    Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error", Verdict.ERROR: "error", Verdict.UNMEASURED: "skipped",
}  # fmt: skip


def junit_xml(checked: Sequence[Checked], findings: Sequence[Finding] = ()) -> str:
    """The document. A failed check is a failure, one that could not be decided or measured an error, one that was
    not asked skipped: nothing but a pass is a pass."""
    root = ET.Element("testsuites", name="quantplan")
    groups: list[tuple[str, Checked | None, tuple[Check, ...]]] = [
        (one.name, one, checks_of((one,))) for one in checked
    ]
    if findings:
        groups.append(("files", None, checks_of((), findings)))
    for name, of, checks in groups:
        _suite(root, name, of, checks)
    for count in ("tests", "failures", "errors"):  # the schema has no other count here
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{sum(float(suite.get('time', '0')) for suite in root):.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, of: Checked | None, checks: Sequence[Check]) -> None:
    found = [_ELEMENT.get(check.verdict) for check in checks]
    seconds = of.seconds if of and of.seconds is not None else 0.0
    suite = ET.SubElement(
        root, "testsuite", name=_text(name), tests=str(len(checks)), failures=str(found.count("failure")),
        errors=str(found.count("error")), skipped=str(found.count("skipped")), time=f"{seconds:.3f}",
    )  # fmt: skip
    if of is not None:
        if of.result.made_at:
            suite.set("timestamp", _text(of.result.made_at.rstrip("Z")))
        _properties(suite, of)
    for check in checks:
        _case(suite, name, check)
    if of is not None and of.result.reason:
        ET.SubElement(suite, "system-out").text = _text(of.result.reason)


def _properties(suite: ET.Element, of: Checked) -> None:
    result = of.result
    told = {
        "verdict": result.verdict.value, "artifact_sha256": result.artifact_sha256, "policy": result.policy,
        "reference_sha256": result.reference_sha256, "n_tokens": result.n_tokens, "file": of.file,
        "engine": result.tool.get("version"),
    }  # fmt: skip
    told |= {f"{m.name} {m.corpus or ''}".strip(): m.value for m in result.metrics if m.limit is None}
    properties = ET.SubElement(suite, "properties")
    for key, value in told.items():
        if value is not None:
            ET.SubElement(properties, "property", name=_text(key), value=_text(str(value)))


def _case(suite: ET.Element, name: str, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", classname=_text(name), name=_text(f"{check.rule}: {check.title}"), time="0")
    element = _ELEMENT.get(check.verdict)
    if element:
        told = ET.SubElement(case, element, message=_text(check.message))
        if element != "skipped":
            told.set("type", check.verdict.value)
        told.text = _text(_details(check))
    elif check.severity in (Severity.WARNING, Severity.NOTE):
        ET.SubElement(case, "system-out").text = _text(f"{check.severity.value}: {_details(check)}")


def _details(check: Check) -> str:
    where = f"{check.file}{f':{check.line}' if check.line else ''}" if check.file else None
    return "\n".join(part for part in (check.message, check.help, where) if part)


def _text(value: str) -> str:
    return _NOT_XML.sub("\ufffd", value)
