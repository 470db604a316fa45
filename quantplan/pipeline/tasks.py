"""HellaSwag, Winogrande and lm-evaluation-harness: told beside the gate's own metrics, never a verdict of its own.

Some hundred questions tell two quantizations of one model apart less well than their divergence does on one window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantplan.artifact.results import Finding, Metric, Severity
from quantplan.errors import BadText
from quantplan.llama import commands, output
from quantplan.llama.process import Runner
from quantplan.llama.types import Toolchain
from quantplan.pipeline.steps import Tell

ATTEMPTS = 3  # the tool loses its last lines in a part of its runs, at exit status 0
HELLASWAG_LINES = 6  # context, index of the right ending, four endings


def count_tasks(kind: str, tasks: Path) -> int:
    """How many questions a file holds. Raises BadText where its lines do not make whole questions."""
    try:
        lines = [line for line in tasks.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadText(text=tasks.name, why=f"cannot be read: {error}") from error
    if kind == "winogrande":
        n, rest = len(lines), 0
    else:
        n, rest = divmod(len(lines), HELLASWAG_LINES)
    if rest or not n:
        raise BadText(text=tasks.name, why=f"{len(lines)} lines are no whole number of {kind} questions")
    return n


def score_tasks(
    kind: str, tasks: Path, model: Path, *, tools: Toolchain, settings: commands.EvalSettings, run: Runner, tell: Tell
) -> tuple[tuple[Metric, ...], tuple[Finding, ...]]:  # fmt: skip
    """The share of right answers with its interval, as a metric without a limit; or a finding when the tool printed
    nothing usable in three attempts."""
    n = count_tasks(kind, tasks)
    make = {"hellaswag": commands.hellaswag, "winogrande": commands.winogrande}[kind]
    argv = make(tools.programs["llama-perplexity"], model, tasks, settings, n_tasks=n)
    tell(kind, "running")
    for _ in range(ATTEMPTS):
        said = run(argv, step=kind)
        found = output.parse_task_score(kind, (*said.stdout, *said.stderr))
        if found is not None and found.n == n:  # the rows are cumulative: an earlier one is another score
            return (_metric(kind, found),), ()
    lost = Finding(
        rule=f"gate/{kind}", severity=Severity.WARNING, file=tasks.name,
        message=f"{kind}: the tool printed no score of all {n} questions in {ATTEMPTS} attempts",
    )  # fmt: skip
    return (), (lost,)


def _metric(kind: str, found: output.TaskScore) -> Metric:
    return Metric(
        name=kind, corpus=None, value=found.share, se=None, low=found.low, high=found.high, limit=None, n=found.n
    )


def read_lm_eval(path: Path) -> tuple[Metric, ...]:
    """results_*.json of lm-evaluation-harness as metrics without limits: `<task>/<metric>`. Raises BadText when it is
    not one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        results: Mapping[str, Mapping[str, object]] = told["results"]
        return tuple(_lm_eval_metrics(results, told.get("n-samples", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadText(text=path.name, why=f"is no result of lm-evaluation-harness ({error})") from error


def _lm_eval_metrics(
    results: Mapping[str, Mapping[str, object]], samples: Mapping[str, Mapping[str, int]]
) -> list[Metric]:  # fmt: skip
    found = []
    for task, scores in results.items():
        for key, value in scores.items():
            name, _, variant = key.partition(",")
            if not isinstance(value, (int, float)) or isinstance(value, bool) or name.endswith("_stderr"):
                continue
            se = scores.get(f"{name}_stderr,{variant}")
            found.append(Metric(
                name=f"{task}/{name}", corpus=None, value=float(value),
                se=float(se) if isinstance(se, (int, float)) else None, low=None, high=None, limit=None,
                n=int(samples.get(task, {}).get("effective", 0)),
            ))  # fmt: skip
    return found
