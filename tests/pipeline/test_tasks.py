"""Optional tasks: argv and what the tools print, on small files written here. No score is claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantplan.errors import BadText
from quantplan.llama import commands, output
from quantplan.llama.process import run_tool
from quantplan.llama.self_test import write_tiny_model
from quantplan.pipeline import tasks
from quantplan.pipeline.tasks import count_tasks, read_lm_eval

HELLASWAG = ["task\tacc_norm\t95% confidence interval", "1\t100.00000000%\t[ 20.6543%, 100.0000%]",
             "2\t50.00000000%\t[  9.4532%, 90.5468%]", ""]  # fmt: skip
WINOGRANDE = ["1\t100.0000\t -1.2\t -3.4  1  1", "Final Winogrande score(4 tasks): 75.0000 +/- 25.0000"]


def test_the_last_row_of_hellaswag_counts() -> None:
    found = output.parse_task_score("hellaswag", HELLASWAG)
    assert found == output.TaskScore(share=0.5, low=pytest.approx(0.094532), high=pytest.approx(0.905468), n=2)


def test_winogrande() -> None:
    found = output.parse_task_score("winogrande", WINOGRANDE)
    assert found == output.TaskScore(share=0.75, low=0.5, high=1.0, n=4)


@pytest.mark.parametrize("kind", ["hellaswag", "winogrande"])
def test_lost_lines_are_no_score(kind: str) -> None:
    assert output.parse_task_score(kind, ["llama_model_loader: loaded", ""]) is None


def test_questions_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("context\n0\na\nb\nc\nd\n" * 2)
    assert count_tasks("hellaswag", file) == 2
    file.write_text("context\n0\na\n")
    with pytest.raises(BadText, match="3 lines are no whole number of hellaswag questions"):
        count_tasks("hellaswag", file)


def test_lm_eval_results_are_read(tmp_path: Path) -> None:
    file = tmp_path / "results_2026.json"
    file.write_text(json.dumps({
        "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "n-samples": {"arc_easy": {"original": 9, "effective": 8}},
    }))  # fmt: skip
    (metric,) = read_lm_eval(file)
    assert (metric.name, metric.value, metric.se, metric.n, metric.limit) == ("arc_easy/acc", 0.5, 0.1, 8, None)
    file.write_text("[]")
    with pytest.raises(BadText):
        read_lm_eval(file)


def test_lm_evals_command_line(tmp_path: Path) -> None:
    argv = commands.lm_eval(("python",), url="http://127.0.0.1:8080", model="m", tokenizer="org/m",
                            tasks=("arc_easy", "piqa"), out=tmp_path, limit=10)  # fmt: skip
    assert argv[:5] == ("python", "-m", "lm_eval", "--model", "local-completions")
    assert "base_url=http://127.0.0.1:8080/v1/completions" in argv[6]
    assert argv[-2:] == ("--limit", "10")


@pytest.mark.tools
def test_the_real_tool_on_small_files(toolchain: Any, tmp_path: Path) -> None:
    """The score of a toy means nothing; that it is read, and says how many questions, does."""
    model = tmp_path / "toy.gguf"
    write_tiny_model(model)
    (tmp_path / "hellaswag.txt").write_text("the dog\n0\nran home\nis a stone\nblue\nseven\n" * 3)
    sentence = "the dog saw the cat and _ ran"
    (tmp_path / "winogrande.csv").write_text("".join(f"{i},{sentence},dog,cat,1\n" for i in range(4)))
    settings = commands.EvalSettings(n_threads=2)
    for kind, file, n in (("hellaswag", "hellaswag.txt", 3), ("winogrande", "winogrande.csv", 4)):
        metrics, findings = tasks.score_tasks(
            kind, tmp_path / file, model, tools=toolchain, settings=settings, run=run_tool, tell=lambda *_: None
        )
        assert [metric.n for metric in metrics] == [n] or [finding.rule for finding in findings] == [f"gate/{kind}"]
