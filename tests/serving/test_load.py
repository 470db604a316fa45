"""The load check against real servers, and its arithmetic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from serving.gateway.front_door import front_door
from serving.gateway.test_limits import plan as any_plan
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Figure, Plan, read_plan, write_plan
from quantplan.artifact.results import Verdict, newest_result
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.places import data_file
from quantplan.planner.plan import server_settings
from quantplan.serving.endpoint import endpoint
from quantplan.serving.launch import running_server
from quantplan.serving.load import LoadRequest, Shot, measure_prompt, run_load
from quantplan.serving.load_report import Promise, is_good, judge, metrics_of, percentile, promise_of

ROOT = Path(__file__).resolve().parents[2]
ASKED = LoadRequest(n_streams=4, n_prompt=1000, n_answer=100, n_requests=8)


def shot(**changes: object) -> Shot:
    told = Shot(ttft_s=1.0, whole_s=11.0, n_prompt=1000, n_answer=101, refused=0, error=None)
    return replace(told, **changes)  # type: ignore[arg-type]


def figure(low: float) -> Figure:
    return Figure(value=2 * low, low=low, high=3 * low, origin="test")


def test_the_promise_is_for_all_streams_at_once() -> None:
    told = any_plan(decode_tokens_per_s=figure(40), prefill_tokens_per_s=figure(2000))
    assert promise_of(told, ASKED) == Promise(ttft_s=4 * 1000 / 2000, per_token_s=4 / 40)
    assert promise_of(any_plan(), ASKED) == Promise(ttft_s=None, per_token_s=None)


def test_good_is_answered_within_both_promises() -> None:
    promise = Promise(ttft_s=1.0, per_token_s=0.1)
    assert shot().per_token_s == 0.1
    assert is_good(shot(), promise)
    assert not is_good(shot(ttft_s=1.01), promise)
    assert not is_good(shot(whole_s=11.2), promise)
    assert not is_good(shot(error="x"), promise)
    assert is_good(shot(ttft_s=99.0, whole_s=999.0), Promise(ttft_s=None, per_token_s=None))


def test_verdicts_and_their_reasons() -> None:
    promise = Promise(ttft_s=1.0, per_token_s=0.1)
    nothing = Promise(ttft_s=None, per_token_s=None)
    assert judge([shot()] * 20, 1, promise) == (
        Verdict.PASS, "20 of 20 requests were answered within the promise")  # fmt: skip
    assert judge([shot()] * 19 + [shot(ttft_s=9.0)], 1, promise)[0] is Verdict.PASS
    assert judge([shot()] * 18 + [shot(ttft_s=9.0)] * 2, 1, promise)[0] is Verdict.FAIL
    assert judge([shot(), shot(error="500: x")], 1, nothing) == (
        Verdict.FAIL, "1 of 2 requests failed; 1 times: 500: x")  # fmt: skip
    assert judge([shot(error="gone")], 1, nothing) == (Verdict.ERROR, "no request was answered: gone")
    assert judge([shot()], 1, nothing) == (
        Verdict.PASS, "all 1 requests were answered; the plan promises no speed")  # fmt: skip


def test_the_figures() -> None:
    shots = [shot(ttft_s=float(n), whole_s=n + 10.0, refused=n % 2) for n in range(1, 21)]
    found = metrics_of(shots, 40.0, Promise(ttft_s=10.0, per_token_s=None), {"host_used_peak_bytes": 7})
    told = {metric.name: metric for metric in found}
    assert (told["ttft_p50_s"].value, told["ttft_p95_s"].value, told["ttft_p99_s"].value) == (10, 19, 20)
    assert (told["ttft_p95_s"].limit, told["ttft_p95_s"].verdict) == (10.0, Verdict.FAIL)
    assert told["decode_tokens_per_s"].value == 20 * 101 / 40
    assert (told["goodput_requests_per_s"].value, told["goodput_share"].value) == (10 / 40, 0.5)
    assert told["goodput_tokens_per_s"].value == 10 * 101 / 40
    assert (told["refused"].value, told["errors"].value) == (10, 0)
    assert told["host_used_peak_bytes"].value == 7
    assert percentile([], 0.5) is None


@pytest.fixture
def running(tiny: Artifact, toolchain: Toolchain):  # type: ignore[no-untyped-def]
    plan = read_plan(tiny.folder / "plan.json")
    settings = server_settings(plan, model=tiny.model, port=free_port())
    with running_server(
        toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lambda _line: None
    ) as up:
        yield up, settings.port, plan


def load(url: str, plan: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", "load", url, "--plan", str(plan), *more], cwd=ROOT, text=True, check=False,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip


@pytest.mark.tools
@pytest.mark.build
def test_a_served_artifact_is_loaded_as_planned(running, tiny: Artifact, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    up, port, plan = running
    folder = tmp_path / tiny.folder.name
    shutil.copytree(tiny.folder, folder)
    done = load(up.url, folder, "--answer-tokens", "32", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(data_file("schemas", "load-1.schema.json").read_text()))
    metrics = {metric["name"]: metric["value"] for metric in told["data"]["metrics"]}
    n_prompt = plan.n_ctx_per_slot - 32
    assert n_prompt * 0.95 <= metrics["prompt_tokens_p50"] <= n_prompt  # as long as planned, and none too long
    assert (metrics["requests"], metrics["errors"]) == (4 * plan.n_parallel, 0)
    assert metrics["ttft_p50_s"] > 0 < metrics["per_token_p50_s"]
    assert metrics["host_used_peak_bytes"] > 0
    kept = newest_result(folder, "load")
    assert kept is not None
    assert (kept.verdict, kept.kind, kept.artifact_sha256) == (Verdict.PASS, "load", tiny.receipt.model_file.sha256)
    schema = json.loads(data_file("schemas", "result-1.schema.json").read_text())
    jsonschema.validate(kept.to_json(), schema)
    slow = replace(plan, decode_tokens_per_s=figure(1e7), prefill_tokens_per_s=figure(1e9))
    write_plan(folder / "plan.json", slow)
    broken = load(up.url, folder / "plan.json", "--answer-tokens", "8", "--prompt-tokens", "64", "--requests", "2")
    assert broken.returncode == 4
    assert broken.stdout.splitlines()[-1] == "fail: 0 of 2 requests were answered within the promise"
    with front_door(tmp_path / "door", {plan.model: plan}, engine_port=port, keys="sesame\n") as door:
        key = tmp_path / "door" / "keys"
        through = load(door.url, tmp_path / "door" / f"{plan.model}.plan.json", "--streams", "8",
                       "--prompt-tokens", "100", "--answer-tokens", "200", "--requests", "16",
                       "--api-key-file", str(key), "--json")  # fmt: skip
        assert through.returncode == 0, through.stderr
        figures = {metric["name"]: metric["value"] for metric in json.loads(through.stdout)["data"]["metrics"]}
        assert figures["refused"] > 0  # eight streams before two slots and two places to wait
        assert figures["errors"] == 0
        refused = load(door.url, folder)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[0] == (
            f"Error: {door.url}: answered 401: the API key is missing or wrong")  # fmt: skip


@pytest.mark.tools
@pytest.mark.build
def test_a_server_that_dies_under_load_is_a_failure(running) -> None:  # type: ignore[no-untyped-def]
    up, _, _ = running
    server = endpoint(up.url)
    shape = measure_prompt(server, n_prompt=100)
    asked = LoadRequest(n_streams=2, n_prompt=100, n_answer=400, n_requests=4)
    shots, _ = run_load(server, shape, asked, said=lambda n: up.child.kill() if n == 1 else None)
    assert len(shots) == 4
    assert sum(shot.error is not None for shot in shots) >= 1
    assert judge(shots, 1, Promise(ttft_s=None, per_token_s=None))[0] is Verdict.FAIL


def test_what_cannot_be_loaded(tiny_plan_file: Path) -> None:
    nobody = load("http://127.0.0.1:1", tiny_plan_file)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.splitlines()[0] == "Error: http://127.0.0.1:1: does not answer (Connection refused)"
    assert nobody.stderr.splitlines()[1].startswith("Hint: check the address and the key")
    long = load("http://127.0.0.1:1", tiny_plan_file, "--prompt-tokens", "2000", "--answer-tokens", "100")
    assert long.returncode == 2
    assert "and 100 of the answer are more than the 2048 of a slot" in long.stderr


@pytest.fixture
def tiny_plan_file(tmp_path: Path) -> Path:
    plan: Plan = any_plan()
    write_plan(tmp_path / "plan.json", plan)
    return tmp_path / "plan.json"
