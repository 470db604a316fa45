"""Receipt, results, plan file: written once, read back, checked against the shipped schemas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.artifact.plan_file import (
    Figure,
    Margin,
    Plan,
    PlannedDevice,
    Quality,
    plan_from_json,
    read_plan,
    write_plan,
)
from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry, entry_of, read_receipt, write_receipt
from quantplan.artifact.results import Metric, Result, Verdict, newest_result, write_result
from quantplan.artifact.store import check_files, find_artifact, gate_objection
from quantplan.errors import BadArtifact, BadModelFile
from quantplan.places import data_file

SHA = "a" * 64


def schema(name: str) -> dict[str, Any]:
    return json.loads(data_file("schemas", f"{name}.schema.json").read_text())


def plan(**changed: Any) -> Plan:
    device = PlannedDevice(
        name="Host", model_bytes=5, context_bytes=4, compute_bytes=3, output_bytes=2, overhead_bytes=1,
        capacity_bytes=100, free_bytes=None,
    )  # fmt: skip
    figure = Figure(value=9.5, low=8.0, high=11.0, origin="measured")
    values: dict[str, Any] = {
        "model": "org/name", "quant": "Q4_K_M",
        "source": {"repo": None, "revision": None, "file": None, "sha256": None},
        "runtime": "llama-server", "n_ctx_per_slot": 8192, "n_parallel": 1, "kv_unified": False, "type_k": "f16",
        "type_v": "f16", "flash_attn": "auto", "n_batch": 2048, "n_ubatch": 512, "n_gpu_layers": 0,
        "tensor_split": (), "n_cpu_moe": 0, "override_tensor": (), "threads": 2, "threads_batch": 2, "numa": None,
        "cpu_range": None, "cache_ram_bytes": 0, "load_mode": "mmap", "mmproj": None, "draft": None,
        "memory": (device,), "decode_tokens_per_s": figure, "prefill_tokens_per_s": None,
        "quality": Quality(kld_mean=0.03, ppl_ratio=None, low=None, high=None, origin="published"),
        "margin": (Margin(device="Host", bytes=7, why="others"),), "argv": ("llama-server",),
        "host_fingerprint": "0123", "made_at": "2026-11-21T00:00:00Z", **changed,
    }  # fmt: skip
    return Plan(**values)


def artifact(folder: Path, *, verdict: Verdict = Verdict.PASS) -> Receipt:
    folder.mkdir()
    (folder / "m-Q4_K_M.gguf").write_bytes(b"GGUF weights")
    file = entry_of(folder / "m-Q4_K_M.gguf")
    step = StepEntry(
        name="quantize", argv=("llama-quantize",), inputs=(file,), output="m", seconds=1.5, peak_rss_bytes=9
    )
    receipt = Receipt(files=(file,), quant="Q4_K_M", source={"repo": None}, tools={"tool": "llama.cpp"}, steps=(step,),
                      texts=(FileEntry(name="prose", sha256=SHA, bytes=3),))  # fmt: skip
    write_receipt(folder, receipt)
    write_result(folder, "gate", result(file.sha256, verdict))
    return receipt


def result(sha256: str, verdict: Verdict) -> Result:
    metric = Metric(name="kld_mean", corpus="prose", value=0.01, se=0.001, low=0.008, high=0.012, limit=0.02, n=255)
    return Result(artifact_sha256=sha256, policy="p", verdict=verdict, metrics=(metric,), tool={}, host={})


def test_plan_round_trip_and_schema(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", plan())
    assert read_plan(tmp_path / "plan.json") == plan()
    told = json.loads((tmp_path / "plan.json").read_text())
    jsonschema.validate(told, schema("plan-1"))
    assert set(told["speed"]) == {"decode_tokens_per_s", "prefill_tokens_per_s"}
    assert plan_from_json({"schema": "quantplan/recommend/1", "data": {"plan": told}}) == plan()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": "quantplan/plan/2"}', '{"schema": "quantplan/plan/1"}']
)
def test_what_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(BadModelFile):
        read_plan(tmp_path / "p.json")
    with pytest.raises(BadModelFile, match="no such plan file"):
        read_plan(tmp_path / "none.json")


def test_receipt_round_trip_schema_and_never_changed(tmp_path: Path) -> None:
    receipt = artifact(tmp_path / "a")
    assert read_receipt(tmp_path / "a") == receipt
    jsonschema.validate(json.loads((tmp_path / "a" / "artifact.json").read_text()), schema("artifact-1"))
    with pytest.raises(BadArtifact, match="never changed"):
        write_receipt(tmp_path / "a", receipt)


def test_results_are_added_and_the_newest_counts(tmp_path: Path) -> None:
    receipt = artifact(tmp_path / "a")
    for path in (tmp_path / "a" / "results").iterdir():
        jsonschema.validate(json.loads(path.read_text()), schema("result-1"))
    assert gate_objection(find_artifact(tmp_path / "a")) is None
    write_result(tmp_path / "a", "gate", result(receipt.model_file.sha256, Verdict.FAIL))
    assert len(list((tmp_path / "a" / "results").iterdir())) == 2
    assert gate_objection(find_artifact(tmp_path / "a")) == "its newest gate result is fail, not pass"
    found = newest_result(tmp_path / "a", "gate")
    assert found is not None
    assert found.verdict is Verdict.FAIL


def test_found_by_folder_receipt_or_file(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    for name in ("", "artifact.json", "m-Q4_K_M.gguf"):
        assert find_artifact(tmp_path / "a" / name).model == tmp_path / "a" / "m-Q4_K_M.gguf"
    (tmp_path / "a" / "other.gguf").touch()
    with pytest.raises(BadArtifact, match="not named by the receipt"):
        find_artifact(tmp_path / "a" / "other.gguf")
    with pytest.raises(BadArtifact, match=r"no artifact\.json"):
        find_artifact(tmp_path)
    with pytest.raises(BadArtifact, match="no such artifact"):
        find_artifact(tmp_path / "none")


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR, Verdict.UNMEASURED])
def test_only_a_pass_may_be_served(tmp_path: Path, verdict: Verdict) -> None:
    artifact(tmp_path / "a", verdict=verdict)
    assert gate_objection(find_artifact(tmp_path / "a")) == f"its newest gate result is {verdict.value}, not pass"


def test_a_result_about_another_file_is_none(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    write_result(tmp_path / "a", "gate", result(SHA, Verdict.PASS))
    assert gate_objection(find_artifact(tmp_path / "a")) == "its newest gate result is about another file"


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    check_files(find_artifact(tmp_path / "a"))
    model = tmp_path / "a" / "m-Q4_K_M.gguf"
    model.write_bytes(b"GGUF weightz")
    with pytest.raises(BadArtifact, match="sha256 is"):
        check_files(find_artifact(tmp_path / "a"))
    model.write_bytes(b"GGUF")
    with pytest.raises(BadArtifact, match="has 4 bytes, its receipt says 12"):
        check_files(find_artifact(tmp_path / "a"))
    model.unlink()
    with pytest.raises(BadArtifact, match="missing"):
        check_files(find_artifact(tmp_path / "a"))


def test_a_receipt_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    receipt = artifact(tmp_path / "a")
    (tmp_path / "a" / "artifact.json").unlink()
    write_receipt(tmp_path / "a", replace(receipt, files=(FileEntry(name="../m.gguf", sha256=SHA, bytes=1),)))
    with pytest.raises(BadArtifact, match="outside its folder"):
        read_receipt(tmp_path / "a")
