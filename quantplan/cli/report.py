"""`quantplan report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.ci_options import ci_options, write_ci
from quantplan.cli.options import emit, json_option

if TYPE_CHECKING:
    from quantplan.report.checks import Checked

_EXIT = {"pass": 0, "fail": 4, "inconclusive": 5, "unmeasured": 5, "error": 1}


@click.command("report", epilog="Example: quantplan report artifacts/* --junit report.xml --sarif report.sarif")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--kind", "kinds", multiple=True, default=("gate",), show_default=True, metavar="KIND",
              help="Report the newest result of this kind (repeatable): gate, bench, load, scan.")  # fmt: skip
@ci_options
@json_option
def command(artifacts: tuple[Path, ...], kinds: tuple[str, ...], as_json: bool, **targets: Any) -> int:
    """What was already found of ARTIFACTS (folders or result files), in the forms that a CI reads. Measures nothing.

    Exit status: 0 all passed, 4 one failed, 5 one is inconclusive or was never measured, 1 one could not be measured.
    """
    from quantplan.report.ci import checks_of, worst
    from quantplan.report.ci_text import ci_data, ci_text

    checked = [one for path in artifacts for one in _checked(path, kinds)]
    write_ci(checked, **targets)
    verdict = worst(one.result.verdict for one in checked).value
    emit("report", ci_data(verdict, checked), as_json=as_json, text=ci_text(verdict, checks_of(checked)),
         ok=verdict == "pass")  # fmt: skip
    return _EXIT[verdict]


def _checked(path: Path, kinds: tuple[str, ...]) -> list[Checked]:
    """A result file as it is; of an artifact the newest result of each kind, unmeasured where there is none."""
    from quantplan.artifact.results import newest_result, read_result
    from quantplan.artifact.store import find_artifact
    from quantplan.report.checks import Checked, unmeasured

    if path.suffix == ".json" and path.parent.name == "results":
        artifact = find_artifact(path.parent.parent)
        return [Checked(name=artifact.model.stem, result=read_result(path), file=_shown(artifact.model))]
    artifact = find_artifact(path)
    sha256 = artifact.receipt.model_file.sha256
    found = [newest_result(artifact.folder, kind) or unmeasured(sha256, kind) for kind in kinds]
    return [Checked(name=artifact.model.stem, result=one, file=_shown(artifact.model)) for one in found]


def _shown(path: Path) -> str:
    """A path as the workspace knows it: relative where it lies inside."""
    here = Path.cwd()
    whole = path.absolute()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.as_posix()
