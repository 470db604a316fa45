"""`quantplan report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.ci_options import ci_options, write_ci
from quantplan.cli.options import emit, json_option

_EXIT = {"pass": 0, "fail": 4, "inconclusive": 5, "unmeasured": 5, "error": 1}


@click.command("report", epilog="Example: quantplan report artifacts/* --junit report.xml --sarif report.sarif")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--kind", "kinds", multiple=True, default=("gate",), show_default=True, metavar="KIND",
              help="Report the newest result of this kind (repeatable): gate, bench, load, scan.")  # fmt: skip
@click.option("--since", metavar="TIME", help="A result before this (2026-11-22T01:02:03Z) counts as none.")
@ci_options
@json_option
def command(artifacts: tuple[Path, ...], kinds: tuple[str, ...], since: str | None, as_json: bool,
            **targets: Any) -> int:  # fmt: skip
    """What was already found of ARTIFACTS (folders or result files), in the forms that a CI reads. Measures nothing;
    a file that is not what its receipt says fails.

    Exit status: 0 all passed, 4 one failed, 5 one is inconclusive or was never measured, 1 one could not be measured.
    """
    from quantplan.report.ci import checks_of, worst
    from quantplan.report.ci_text import ci_data, ci_text
    from quantplan.report.found_results import checked_results

    checked = [one for path in artifacts for one in checked_results(path, kinds, since=since)]
    write_ci(checked, **targets)
    verdict = worst(one.result.verdict for one in checked).value
    emit("report", ci_data(verdict, checked), as_json=as_json, text=ci_text(verdict, checks_of(checked)),
         ok=verdict == "pass")  # fmt: skip
    return _EXIT[verdict]
