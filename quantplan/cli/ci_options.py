"""Options of the commands whose answer a CI reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from quantplan.artifact.results import Finding
    from quantplan.report.checks import Checked

F = TypeVar("F", bound=Callable[..., Any])
_FILES = (
    ("--junit", "junit", "Write JUnit XML."),
    ("--sarif", "sarif", "Write SARIF 2.1.0, for code scanning."),
    ("--markdown", "markdown", "Write Markdown, for the comment of a pull request."),
)


def ci_options(function: F) -> F:
    """`--junit`, `--sarif`, `--markdown` FILE and `--github/--no-github`: for `write_ci`."""
    github = click.option("--github/--no-github", default=None,
                          help="GitHub annotations and step summary; on by itself in GitHub Actions.")  # fmt: skip
    function = github(function)
    for flag, name, text in reversed(_FILES):
        file = click.Path(path_type=Path, dir_okay=False)
        function = click.option(flag, name, type=file, metavar="FILE", help=text)(function)
    return function


def write_ci(
    checked: Sequence[Checked], findings: Sequence[Finding] = (), *, junit: Path | None, sarif: Path | None,
    markdown: Path | None, github: bool | None,
) -> None:  # fmt: skip
    """Writes what was asked for. Annotations go to stderr, where GitHub reads them too: stdout is the result only."""
    from quantplan.report.ci import CiTargets, write_ci_files

    here = os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github
    targets = CiTargets(junit=junit, sarif=sarif, markdown=markdown, github=here)
    for line in write_ci_files(targets, checked, findings):
        click.echo(line, err=True)
