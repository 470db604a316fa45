"""Writes what a CI asked for, each file whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import write_atomically
from quantplan.artifact.results import Finding
from quantplan.report.checks import Checked
from quantplan.report.ci_markdown import markdown, step_summary
from quantplan.report.github import github_annotations
from quantplan.report.junit import junit_xml
from quantplan.report.sarif import sarif


@dataclass(frozen=True, slots=True, kw_only=True)
class CiTargets:
    """Where each output goes; None is not asked for. `github` adds annotations and the step summary."""

    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None
    github: bool = False


def write_ci_files(
    targets: CiTargets, checked: Sequence[Checked], findings: Sequence[Finding] = (),
    *, environment: Mapping[str, str] = os.environ,
) -> list[str]:  # fmt: skip
    """Writes the files that were asked for and returns the annotation lines to print, empty unless for GitHub."""
    if targets.junit:
        _write(targets.junit, junit_xml(checked, findings))
    if targets.sarif:
        _write(targets.sarif, json.dumps(sarif(checked, findings), indent=2) + "\n")
    if targets.markdown:
        _write(targets.markdown, markdown(checked, findings))
    if not targets.github:
        return []
    summary = environment.get("GITHUB_STEP_SUMMARY")
    if summary:
        _append_summary(Path(summary), checked, findings)
    return github_annotations(checked, findings)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _append_summary(path: Path, checked: Sequence[Checked], findings: Sequence[Finding]) -> None:
    used = path.stat().st_size if path.exists() else 0
    with path.open("a", encoding="utf-8") as file:
        file.write(step_summary(checked, findings, used_bytes=used))
