"""`quantplan lint`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.artifact.results import Finding


@click.command("lint", epilog="Example: quantplan lint deploy/ --plan plan.json --sarif lint.sarif")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plan", "plan_file", type=click.Path(path_type=Path, dir_okay=False), help="Check against this plan.")
@click.option("--fix", is_flag=True, help="Mend what is safe to mend; what is left is printed.")
@click.option("--sarif", type=click.Path(path_type=Path, dir_okay=False), help="Also write SARIF 2.1.0 to this file.")
@json_option
def command(paths: tuple[Path, ...], plan_file: Path | None, fix: bool, sarif: Path | None, as_json: bool) -> None:
    """Folklore and contradictions in units, compose files, manifests, Dockerfiles, scripts, .env files and clients.

    Each finding names the line, why, and what to write instead. Exits with 4 when there is an error or a warning.
    """
    from quantplan.artifact.plan_file import read_plan
    from quantplan.serving.lint.check import lint_paths

    found = lint_paths(paths, plan=read_plan(plan_file) if plan_file else None, fix=fix)
    for name in found.fixed:
        say(f"mended: {name}")
    if sarif:
        from quantplan.report.ci_files import CiTargets, write_ci_files

        write_ci_files(CiTargets(sarif=sarif), (), found.findings)
    failed = any(finding.severity.value != "note" for finding in found.findings)
    emit("lint", found, as_json=as_json, text=_text(found.n_files, found.findings), ok=not failed)
    if failed:
        sys.exit(4)


def _text(n_files: int, findings: tuple[Finding, ...]) -> str:
    lines = []
    for finding in findings:
        rule = finding.rule.removeprefix("lint/")
        lines += [
            f"{finding.file}:{finding.line}: {finding.severity.value}: {finding.message} [{rule}]",
            f"    {finding.help}",
        ]
    files = "1 file" if n_files == 1 else f"{n_files} files"
    count = "nothing found" if not findings else "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    return "\n".join([*lines, f"{files} read: {count}"])
