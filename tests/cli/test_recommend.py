"""recommend from the outside: whole processes, exit codes, stdout and stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.artifact.plan_file import plan_from_json
from quantplan.places import data_file

ROOT = Path(__file__).resolve().parents[2]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def run(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", *words], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )  # fmt: skip


def document(*words: str) -> dict[str, Any]:
    done = run("recommend", *words, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_the_contract() -> None:
    told = document(LLAMA)
    jsonschema.validate(told, json.loads(data_file("schemas", "recommend-1.schema.json").read_text()))
    assert told["data"]["model"] | {"origin": 0} == {
        "id": LLAMA, "revision": None, "arch": "llama", "n_layer": 32, "n_ctx_train": 131072,
        "parameters": 8030261248, "origin": 0,
    }  # fmt: skip
    plan = plan_from_json(told["data"]["plan"])
    host = next(device for device in plan.memory if device.name == "Host")
    assert host.model_bytes > 0
    assert plan.host_fingerprint == told["data"]["hardware"]["fingerprint"]
    assert plan.argv[0] == "llama-server"
    assert plan.argv[plan.argv.index("--ctx-size") + 1] == str(plan.n_ctx_per_slot * plan.n_parallel)


@pytest.mark.parametrize("name", ["llama-3.1-8b-instruct", "META-LLAMA/LLAMA-3.1-8B-INSTRUCT", "Llama-3.1-8B"])
def test_names_resolve_in_any_case(name: str) -> None:
    assert document(name)["data"]["model"]["id"] == LLAMA


def test_context_of_llama_3_1_8b_is_exact() -> None:
    """32 layers × 8 heads × 128 × 2 (K and V) × 2 bytes × 8,192 cells = 1,024 MiB."""
    plan = document(LLAMA, "--ctx", "8192")["data"]["plan"]
    assert sum(device["context_bytes"] for device in plan["memory"]["devices"]) == 1024 * 1024**2


def test_an_unknown_model() -> None:
    done = run("recommend", "meta-llama/Llama-3.1-8B-Instrukt", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0].startswith("Error: no model called 'meta-llama/Llama-3.1-8B-Instrukt'")
    assert f"near names: {LLAMA}" in done.stderr
    assert done.stderr.splitlines()[1] == f"Hint: quantplan recommend {LLAMA}"


def test_failures_are_documents_too() -> None:
    done = run("recommend", "nosuch", "--json")
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(data_file("schemas", "document-1.schema.json").read_text()))
    assert told["error"]["kind"] == "UnknownModel"
    assert told["error"]["exit_code"] == done.returncode == 1
    usage = run("recommend", LLAMA, "--nosuch", "--json")
    assert json.loads(usage.stdout)["error"]["exit_code"] == usage.returncode == 2


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((LLAMA, "--ctx", "0"), 2, "context 0 is not a number of tokens above 0"),
        ((LLAMA, "--quant", "Q4_K_X"), 2, "preset 'Q4_K_X' is unknown to llama-quantize"),
        ((LLAMA, "--ctx", "100000000"), 3, "needs"),
        (("./nosuch.gguf",), 1, "no such file or folder"),
    ],
)
def test_bad_input(words: tuple[str, ...], status: int, says: str) -> None:
    done = run("recommend", *words)
    assert done.returncode == status
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "Hint: " in done.stderr


def test_a_folder_without_config_and_a_gguf_cut_in_half(tmp_path: Path) -> None:
    from quantplan.llama.self_test import write_tiny_model

    done = run("recommend", str(tmp_path))
    assert (done.returncode, "has no config.json" in done.stderr) == (1, True)
    whole = tmp_path / "whole.gguf"
    write_tiny_model(whole)
    assert run("recommend", str(whole)).returncode == 0
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = run("recommend", str(cut))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(cut) in done.stderr


def test_save_writes_the_plan(tmp_path: Path) -> None:
    done = run("recommend", LLAMA, "--save", str(tmp_path / "plan.json"))
    assert done.returncode == 0
    jsonschema.validate(
        json.loads((tmp_path / "plan.json").read_text()),
        json.loads(data_file("schemas", "plan-1.schema.json").read_text()),
    )


def test_a_cold_process_is_fast() -> None:
    """Under 0.8 s of processor time: what the machine does beside it does not count."""
    spent = []
    for _ in range(5):
        before = os.times()
        assert run("recommend", LLAMA).returncode == 0
        after = os.times()
        spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(spent) < 0.8, spent


def test_the_catalog_lists_at_least_thirty_models_with_checked_counts() -> None:
    models = json.loads(run("recommend", "--list-models", "--json").stdout)["data"]["models"]
    assert len(models) >= 30
    assert sum(model["parameters"] is not None for model in models) >= 30
