"""history, compare and report from the command line: whole stdout, stderr and exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantplan.artifact.receipt import Receipt, entry_of, sha256_of, write_receipt
from quantplan.artifact.results import Metric, Result, Verdict, write_result

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")}
    return subprocess.run(
        [sys.executable, "-m", "quantplan", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False,
        env={**quiet, "PYTHONPATH": str(ROOT), "QUANTPLAN_STATE": str(cwd / "state"), **env}, timeout=120,
    )  # fmt: skip


def artifact(
    folder: Path, quant: str, verdict: Verdict, kld: float, *, model: str = "toy", made_at: str | None = None
) -> Path:
    """An artifact folder with one gate result; its GGUF is a hole that nobody reads as a model."""
    own = folder / f"{model}-{quant}"
    name = f"{model}-{quant}.gguf"
    if not own.exists():
        own.mkdir(parents=True)
        (own / name).write_bytes(bytes(int(1e6 / (1 + kld))))
        weights = {"name": "model.safetensors", "sha256": f"{len(model):064x}", "bytes": 1}
        source = {"repo": None, "revision": None, "name": model, "files": [weights]}
        write_receipt(
            own, Receipt(files=(entry_of(own / name),), quant=quant, source=source, tools={}, steps=(), texts=())
        )
    metric = Metric(name="kld_mean", corpus="prose", value=kld, se=0.001, low=kld - 0.002, high=kld + 0.002,
                    limit=0.05, n=5100)  # fmt: skip
    extra: dict[str, Any] = {"made_at": made_at} if made_at else {}
    result = Result(artifact_sha256=sha256_of(own / name), policy="standard", verdict=verdict, metrics=(metric,),
                    tool={"version": "b1"}, host={}, **extra)  # fmt: skip
    write_result(own, "gate", result)
    return own


@pytest.fixture
def two(tmp_path: Path) -> Path:
    artifact(tmp_path / "art", "Q8_0", Verdict.PASS, 0.002, made_at="2026-11-01T10:00:00Z")
    artifact(tmp_path / "art", "Q2_K", Verdict.FAIL, 0.2, made_at="2026-11-02T10:00:00Z")
    return tmp_path


def test_nothing_recorded_yet(tmp_path: Path) -> None:
    done = run("history", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing was recorded yet\n", "")


def test_history_of_what_a_build_left(two: Path) -> None:
    done = run("history", "--add", "art", cwd=two)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "when              model  preset  what  verdict  size       measured\n"
        "2026-11-01 10:00  toy    Q8_0    gate  pass     974.6 KiB  KLD 0.002 ± 0.002 on prose\n"
        "2026-11-02 10:00  toy    Q2_K    gate  fail     813.8 KiB  KLD 0.2 ± 0.002 on prose\n"
    )
    again = run("history", "toy", cwd=two)
    assert again.stdout == done.stdout


def test_an_unknown_model_and_the_command_that_helps(two: Path) -> None:
    run("history", "--add", "art", cwd=two)
    done = run("history", "nobody/nothing", cwd=two)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: nothing was recorded of 'nobody/nothing'; recorded here: toy\nHint: quantplan history toy\n"
    )


def test_a_regression_is_told_and_checked(two: Path) -> None:
    artifact(two / "art", "Q8_0", Verdict.PASS, 0.011, made_at="2026-11-03T10:00:00Z")
    done = run("history", "--add", "art", "--check", cwd=two)
    assert done.returncode == 4
    assert done.stdout.splitlines()[-2:] == [
        "Worse than the last that passed",
        "  toy Q8_0 gate kld_mean on prose: rose from 0.002 to 0.011, more than its noise of 0.0049 "
        "(passed 2026-11-01)",
    ]
    told = json.loads(run("history", "--check", "--json", cwd=two).stdout)
    assert (told["schema"], told["ok"]) == ("quantplan/history/1", False)
    assert [r["metric"] for r in told["data"]["regressions"]] == ["kld_mean"]
    assert [r["result"]["verdict"] for r in told["data"]["results"]] == ["pass", "fail", "pass"]
    assert run("history", cwd=two).returncode == 0


def test_history_as_csv_and_parquet(two: Path) -> None:
    done = run("history", "--add", "art", "--csv", "-", "--parquet", "h.parquet", cwd=two)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(r["quant"], r["metric"], r["value"], r["verdict"]) for r in rows] == [
        ("Q8_0", "kld_mean", "0.002", "pass"), ("Q2_K", "kld_mean", "0.2", "fail"),
    ]  # fmt: skip
    import pandas as pd

    assert list(pd.read_parquet(two / "h.parquet")["value"]) == [0.002, 0.2]
    run("history", "--csv", "h.csv", cwd=two)
    assert (two / "h.csv").read_text() == done.stdout


def test_a_damaged_store_warns_who_adds_and_fails_who_asks(two: Path) -> None:
    (two / "state").mkdir()
    (two / "state" / "history.sqlite3").write_bytes(b"no database at all " * 99)
    done = run("history", "--add", "art", cwd=two)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {two}/state/history.sqlite3: the history is damaged (file is not a database)\n"
        "Hint: move the file away; quantplan history --add FOLDER records artifacts in a new one\n"
    )


def test_report_of_two_artifacts(two: Path) -> None:
    done = run("report", "art/toy-Q8_0", "art/toy-Q2_K", "--junit", "j.xml", "--sarif", "s.sarif", "--markdown", "m.md",
               cwd=two)  # fmt: skip
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout == (
        "toy-Q2_K: mean KL divergence on prose: fail: 0.2 ± 0.002, limit 0.05 (5,100 tokens)\n"
        "1 of 2 checks passed: fail\n"
    )
    assert 'tests="2" failures="1"' in (two / "j.xml").read_text()
    results = json.loads((two / "s.sarif").read_text())["runs"][0]["results"]
    assert [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results] == [
        "art/toy-Q2_K/toy-Q2_K.gguf"
    ]
    assert (two / "m.md").read_text().startswith("<!-- quantplan -->\n### quantplan: ❌ fail\n")


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(Verdict.PASS, 0), (Verdict.FAIL, 4), (Verdict.INCONCLUSIVE, 5), (Verdict.ERROR, 1), (Verdict.UNMEASURED, 5)],
)
def test_the_exit_status_of_a_report(tmp_path: Path, verdict: Verdict, status: int) -> None:
    folder = artifact(tmp_path, "Q8_0", verdict, 0.002)
    done = run("report", folder, "--json", cwd=tmp_path)
    assert done.returncode == status
    told = json.loads(done.stdout)
    assert (told["schema"], told["ok"], told["data"]["verdict"]) == (
        "quantplan/report/1", verdict is Verdict.PASS, verdict.value,
    )  # fmt: skip


def test_what_was_never_measured_is_no_pass(two: Path) -> None:
    done = run("report", "art/toy-Q8_0", "--kind", "scan", cwd=two)
    assert done.returncode == 5
    assert done.stdout == "toy-Q8_0: verdict: unmeasured: no scan result was found\n0 of 1 checks passed: unmeasured\n"


def test_a_changed_file_fails_whatever_its_results_say(two: Path) -> None:
    file = two / "art" / "toy-Q8_0" / "toy-Q8_0.gguf"
    data = bytearray(file.read_bytes())
    data[500_000] ^= 1
    file.write_bytes(data)
    done = run("report", "art/toy-Q8_0", cwd=two)
    assert done.returncode == 4
    assert done.stdout.startswith("toy-Q8_0: gate/changed-file: fail: sha256 is ")


def test_a_committed_receipt_without_its_file_is_reported_by_its_results(two: Path) -> None:
    (two / "art" / "toy-Q8_0" / "toy-Q8_0.gguf").unlink()
    done = run("report", "art/toy-Q8_0/artifact.json", cwd=two)
    assert (done.returncode, done.stdout) == (0, "1 of 1 checks passed: pass\n")


@pytest.mark.parametrize(
    ("since", "status"), [("2026-11-01T10:00:00Z", 0), ("2026-11-01T10:00:00.5Z", 1), ("2026-11-02T00:00:00Z", 1)]
)
def test_an_old_result_does_not_speak_for_a_new_gate(two: Path, since: str, status: int) -> None:
    done = run("report", "art/toy-Q8_0", "--since", since, cwd=two)
    assert done.returncode == status
    if status:
        assert f"verdict: error: no gate result since {since}: it could not be measured\n" in done.stdout


def test_a_time_that_is_none_is_refused(two: Path) -> None:
    done = run("report", "art/toy-Q8_0", "--since", "yesterday", cwd=two)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: time 'yesterday' is not like 2026-11-22T01:02:03Z\n")


def test_in_github_actions_annotations_and_summary_come_by_themselves(two: Path) -> None:
    summary = two / "summary.md"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = run("report", "art/toy-Q2_K", cwd=two, **env)
    assert done.stderr == (
        "::error file=art/toy-Q2_K/toy-Q2_K.gguf,title=toy-Q2_K%3A mean KL divergence on prose::"
        "0.2 ± 0.002, limit 0.05 (5,100 tokens)\n"
    )
    assert "### quantplan: ❌ fail" in summary.read_text()
    assert run("report", "art/toy-Q2_K", "--no-github", cwd=two, **env).stderr == ""


def test_compare_prints_a_table_and_draws(two: Path) -> None:
    done = run("compare", "art/toy-Q8_0", "art/toy-Q2_K", "--plot", "p.svg", "--hardware", "rtx4070", cwd=two)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "toy: mean over prose; ± is two standard errors\n"
        "\n"
        "artifact       size            KLD  gate  pareto\n"
        "toy-Q2_K  813.8 KiB    0.2 ± 0.002  fail     yes\n"
        "toy-Q8_0  974.6 KiB  0.002 ± 0.002  pass     yes\n"
    )
    assert (two / "p.svg").read_text().startswith("<svg ")
    rows = json.loads(run("compare", "art/toy-Q8_0", "art/toy-Q2_K", "--json", cwd=two).stdout)["data"]["artifacts"]
    assert [(r["quant"], r["kld_mean"], r["kld_mean_se"]) for r in rows] == [
        ("Q2_K", 0.2, 0.001),
        ("Q8_0", 0.002, 0.001),
    ]


def test_compare_refuses_other_sources(two: Path) -> None:
    artifact(two / "art", "Q8_0", Verdict.PASS, 0.003, model="another")
    done = run("compare", "art/toy-Q8_0", "art/another-Q8_0", cwd=two)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: art/toy-Q8_0 and art/another-Q8_0 were not made from one source: the weights of toy and of another "
        "have other hashes\n"
        "Hint: compare artifacts of one build: quantplan build MODEL --quant Q4_K_M --quant Q5_K_M\n"
    )


def test_parquet_without_pyarrow_names_the_command(two: Path) -> None:
    (two / "block").mkdir()
    (two / "block" / "pyarrow.py").write_text("raise ImportError('blocked')\n")
    done = run("compare", "art/toy-Q8_0", "art/toy-Q2_K", "--parquet", "t.parquet", cwd=two,
               PYTHONPATH=f"{two / 'block'}:{ROOT}")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: a Parquet file needs pyarrow, which is not installed\nHint: pip install 'quantplan[parquet]'\n"
    )


def test_compare_of_one_is_refused(two: Path) -> None:
    done = run("compare", "art/toy-Q8_0", cwd=two)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: artifacts to compare are two or more\n")
