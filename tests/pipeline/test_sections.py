"""The parts of a policy that read result files: a missing one is inconclusive and names the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry
from quantplan.artifact.results import Finding, Metric, Result, Severity, Verdict, write_result
from quantplan.pipeline.policy import Policy, Ratio, load_policy
from quantplan.pipeline.sections import Subject, judge_sections

SHA, OTHER = "a" * 64, "b" * 64
BARE = replace(load_policy("standard"), template_parity=False)


def receipt() -> Receipt:
    file = FileEntry(name="m.gguf", sha256=SHA, bytes=5)
    step = StepEntry(name="quantize Q4_K_M", argv=("q",), inputs=(file,), output="m", seconds=1.0, peak_rss_bytes=1)
    return Receipt(files=(file,), quant="Q4_K_M", source={"files": [{"name": "x"}]}, tools={"commit": "0c1e570"},
                   steps=(step,), texts=())  # fmt: skip


def subject(folder: Path, **changed: Any) -> Subject:
    values: dict[str, Any] = {"name": "m", "sha256": SHA, "file_bytes": 400, "folder": folder, "receipt": receipt()}
    return Subject(**{**values, **changed})


def measured(
    folder: Path, kind: str, *, sha256: str = SHA, findings: tuple[Finding, ...] = (), **values: float
) -> None:
    folder.mkdir(exist_ok=True)
    metrics = tuple(
        Metric(name=name, corpus=None, value=value, se=None, low=None, high=None, limit=None, n=0)
        for name, value in values.items()
    )
    write_result(folder, kind, Result(artifact_sha256=sha256, policy=None, verdict=Verdict.PASS, metrics=metrics,
                                      tool={}, host={}, findings=findings))  # fmt: skip


def only(policy: Policy, one: Subject, **how: Any) -> Metric:
    asked: dict[str, Any] = {"reference_bytes": 1000, "template_kept": True, "baseline": None, **how}
    (metric,) = judge_sections(policy, one, **asked)
    return metric


def test_decode_against_a_baseline(tmp_path: Path) -> None:
    policy = replace(BARE, performance={"decode": Ratio(limit=0.9)})
    mine, base = tmp_path / "mine", tmp_path / "base"
    mine.mkdir()
    found = only(policy, subject(mine))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == "decode was not measured of this file: run quantplan bench or quantplan load"
    measured(mine, "bench", decode_tokens_per_s=44.0)
    found = only(policy, subject(mine))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == "decode is to be held against a baseline, and none was given"
    base.mkdir()
    assert "has no measurement of decode" in str(only(policy, subject(mine), baseline=base).reason)
    measured(base, "bench", sha256=OTHER, decode_tokens_per_s=50.0)
    found = only(policy, subject(mine), baseline=base)
    assert (found.verdict, found.value, found.limit_is) == (Verdict.FAIL, pytest.approx(0.88), "min")
    assert found.reason == "decode: 44 measured, 50 in the baseline"
    measured(mine, "bench", decode_tokens_per_s=46.0)
    assert only(policy, subject(mine), baseline=base).verdict is Verdict.PASS


def test_a_measurement_of_another_file_does_not_count(tmp_path: Path) -> None:
    measured(tmp_path, "bench", sha256=OTHER, decode_tokens_per_s=44.0)
    policy = replace(BARE, performance={"decode": Ratio(limit=0.9)})
    assert only(policy, subject(tmp_path)).verdict is Verdict.INCONCLUSIVE


def test_more_time_and_memory_are_worse(tmp_path: Path) -> None:
    mine, base = tmp_path / "mine", tmp_path / "base"
    measured(base, "load", sha256=OTHER, ttft_p50_s=0.2)
    measured(mine, "load", ttft_p50_s=0.3)
    policy = replace(BARE, performance={"time_to_first_token": Ratio(limit=1.2)})
    assert only(policy, subject(mine), baseline=base).verdict is Verdict.FAIL
    planned = replace(BARE, performance={"host_memory": Ratio(limit=1.2, against="plan")})
    measured(mine, "load", host_bytes=1e9)
    assert "the plan beside the artifact predicts no host_memory" in str(only(planned, subject(mine)).reason)


def test_scan(tmp_path: Path) -> None:
    policy = replace(BARE, scan_at_most="warning")
    found = only(policy, subject(tmp_path))
    assert (found.verdict, found.reason) == (
        Verdict.INCONCLUSIVE, "no scan of this very file: run quantplan verify",
    )  # fmt: skip
    measured(tmp_path, "scan", findings=(Finding(rule="scan/x", severity=Severity.WARNING, message="odd"),))
    assert only(policy, subject(tmp_path)).verdict is Verdict.PASS
    measured(tmp_path, "scan", findings=(Finding(rule="scan/x", severity=Severity.ERROR, message="a loop"),))
    found = only(policy, subject(tmp_path))
    assert (found.verdict, found.reason) == (Verdict.FAIL, "the scan found 1 above warning: a loop")


def test_provenance_template_and_size(tmp_path: Path) -> None:
    whole = replace(BARE, receipt=True)
    assert only(whole, subject(tmp_path)).verdict is Verdict.PASS
    assert only(whole, subject(tmp_path, receipt=None)).reason == "has no receipt"
    bare = replace(receipt(), source={})
    assert only(whole, subject(tmp_path, receipt=bare)).reason == "its receipt names no source files"
    signed = replace(BARE, signature=True)
    assert only(signed, subject(tmp_path)).verdict is Verdict.INCONCLUSIVE
    assert only(signed, subject(tmp_path, signed=False)).verdict is Verdict.FAIL
    assert only(signed, subject(tmp_path, signed=True)).verdict is Verdict.PASS
    parity = replace(BARE, template_parity=True)
    assert only(parity, subject(tmp_path), template_kept=False).verdict is Verdict.FAIL
    size = replace(BARE, size={"of_reference_at_most": 0.39})
    found = only(size, subject(tmp_path))
    assert (found.verdict, found.value) == (Verdict.FAIL, 0.4)
    assert only(replace(BARE, size={"at_most_bytes": 400}), subject(tmp_path)).verdict is Verdict.PASS
