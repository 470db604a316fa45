"""Prometheus' files: taken by promtool, alerts proven on made-up series, and every metric is one that is served."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving.export.cases import CASES, deployment
from serving.export.deployed import deployed, put, running_engine, speed
from serving.gateway.front_door import ask, chat, front_door
from serving.tiny_plan import free_port
from system_programs import program

from quantplan.artifact.results import Metric, Result, Verdict, write_result
from quantplan.artifact.store import Artifact
from quantplan.errors import TargetTooOld
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target
from quantplan.serving.lint.check import lint_paths


def promtool(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [program("promtool", package="Debian: prometheus"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def told(tmp_path: Path) -> Deployment:
    """Two slots, a queue of two, and a plan that promises at least 50 tokens/s."""
    key = tmp_path / "key"
    key.write_text("secret\n")
    found = deployment(tmp_path, CASES[0], api_key_file=str(key))
    return replace(found, plan=replace(found.plan, decode_tokens_per_s=speed(100, low=50)))


def rules(told: Deployment) -> dict[str, dict[str, Any]]:
    """Rules by the name of their alert or record."""
    document = yaml.safe_load(export("prometheus", (told,)).files[1].text)
    return {rule.get("alert") or rule["record"]: rule for group in document["groups"] for rule in group["rules"]}


def test_promtool_takes_it(told: Deployment, tmp_path: Path) -> None:
    folder = put(tmp_path / "out", export("prometheus", (told,)))
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=folder)
    assert "12 rules found" in promtool("check", "rules", f"quantplan-{told.name}.rules.yml", cwd=folder)
    assert lint_paths([folder], plan=told.plan).findings == ()
    job = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"][0]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8080"]
    assert job["authorization"]["credentials_file"] == told.target.api_key_file


def series(told: Deployment, **values: str) -> list[dict[str, str]]:
    """Made-up series of the job, once a minute; names with _ for : after llamacpp."""
    labels = f'{{job="{told.name}",instance="127.0.0.1:8080",quant="Q4_K_M"}}'
    return [
        {"series": f"{name.replace('llamacpp_', 'llamacpp:')}{labels}", "values": told} for name, told in values.items()
    ]


def firing(told: Deployment, folder: Path, at: str, alert: str, given: list[dict[str, str]], *, fires: bool) -> None:
    """promtool runs the rules over the series: the alert fires at that time, or not."""
    put(folder, export("prometheus", (told,)))
    rule = rules(told)[alert]
    value = re.compile(r"\{\{.*?\}\}")
    one: dict[str, Any] = {"eval_time": at, "alertname": alert}
    if fires:
        assert not value.search(rule["annotations"]["summary"])
        labels = {"severity": rule["labels"]["severity"]}
        if "GatewayRefuses" not in alert and "EngineFails" not in alert:
            labels |= {"job": told.name, "instance": "127.0.0.1:8080", "quant": "Q4_K_M"}
        one["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}]
    test = {"rule_files": [f"quantplan-{told.name}.rules.yml"], "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": given, "alert_rule_test": [one]}]}  # fmt: skip
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", "test.yml", cwd=folder)


@pytest.mark.parametrize(
    ("alert", "bad", "good", "at"),
    [
        ("QuantplanDown", {"up": "0x20"}, {"up": "1x20"}, "5m"),
        ("QuantplanQueueLong", {"llamacpp_requests_deferred": "3x20"}, {"llamacpp_requests_deferred": "2x20"}, "5m"),
        ("QuantplanSaturated", {"llamacpp_requests_deferred": "1x40"},
         {"llamacpp_requests_deferred": "1x5 0 1x30"}, "14m"),
        ("QuantplanContextNearlyFull", {"llamacpp_n_tokens_max": "980x9"}, {"llamacpp_n_tokens_max": "900x9"}, "5m"),
        ("QuantplanGatewayThrottled", {"quantplan_gateway_concurrency_limit": "1x20"},
         {"quantplan_gateway_concurrency_limit": "2x20"}, "10m"),
        ("QuantplanGatewayModelGone", {"quantplan_gateway_model_loaded": "0x20"},
         {"quantplan_gateway_model_loaded": "1x20"}, "10m"),
    ],
)  # fmt: skip
def test_alerts_fire_when_they_should_and_only_then(
    alert: str, bad: dict[str, str], good: dict[str, str], at: str, told: Deployment, tmp_path: Path
) -> None:
    firing(told, tmp_path / "bad", at, alert, series(told, **bad), fires=True)
    firing(told, tmp_path / "good", at, alert, series(told, **good), fires=False)


@pytest.mark.parametrize(
    ("alert", "outcome", "counts", "fires"),
    [("QuantplanGatewayRefuses", "rate_limit_exceeded", "0+12x60", True),
     ("QuantplanGatewayRefuses", "rate_limit_exceeded", "0+5x60", False),
     ("QuantplanGatewayRefuses", "context_length_exceeded", "0+50x60", False),
     ("QuantplanGatewayEngineFails", "engine_ended", "0+1x60", True),
     ("QuantplanGatewayEngineFails", "engine_503", "0+1x60", True),
     ("QuantplanGatewayEngineFails", "client_left", "0+9x60", False)],
)  # fmt: skip
def test_what_the_gateway_refuses(
    alert: str, outcome: str, counts: str, fires: bool, told: Deployment, tmp_path: Path
) -> None:
    """Beside a hundred answered requests a minute."""
    given = [{"series": f'quantplan_gateway_requests_total{{job="{told.name}",outcome="{name}"}}', "values": values}
             for name, values in (("ok", "0+100x60"), (outcome, counts))]  # fmt: skip
    firing(told, tmp_path / "out", "30m", alert, given, fires=fires)


def decode(told: Deployment, *, per_stream: float, streams: int) -> list[dict[str, str]]:
    """The counters of that many streams that go on all the time at so many tokens a second each."""
    tokens, seconds = int(per_stream * 60 * streams), 60 * streams
    return series(told, llamacpp_tokens_predicted_total=f"0+{tokens}x60",
                  llamacpp_tokens_predicted_seconds_total=f"0+{seconds}x60",
                  llamacpp_n_decode_total=f"0+{int(per_stream * 60)}x60")  # fmt: skip


@pytest.mark.parametrize(
    ("per_stream", "streams", "slow"), [(39, 1, True), (41, 1, False), (25, 2, False), (19, 2, True), (0.2, 1, False)]
)
def test_a_slow_decode_is_told_from_a_busy_one(
    per_stream: float, streams: int, slow: bool, told: Deployment, tmp_path: Path
) -> None:
    """0.8 × 50 = 40 tokens/s: two streams of 25 are more than that; a few tokens say nothing."""
    rule = rules(told)["QuantplanDecodeSlow"]
    assert "< 40 and" in rule["expr"]
    folder = tmp_path / "out"
    put(folder, export("prometheus", (told,)))
    one = {"eval_time": "30m", "alertname": "QuantplanDecodeSlow"}
    if slow:
        rate = per_stream * streams
        labels = {"severity": "warning", "job": told.name, "instance": "127.0.0.1:8080", "quant": "Q4_K_M"}
        summary = rule["annotations"]["summary"].replace("{{ $value | humanize }}", f"{rate:g}")
        one["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]  # type: ignore[assignment]
    test = {"rule_files": [f"quantplan-{told.name}.rules.yml"], "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": decode(told, per_stream=per_stream, streams=streams),
                       "alert_rule_test": [one]}]}  # fmt: skip
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", "test.yml", cwd=folder)


def test_a_measured_speed_goes_before_a_predicted_one(told: Deployment) -> None:
    metric = Metric(name="decode_tokens_per_s", corpus=None, value=80.0, se=None, low=None, high=None, limit=None, n=5)
    for sha256, least in (("0" * 64, 40), (told.sha256, 64)):
        write_result(told.folder, "bench", Result(artifact_sha256=sha256, policy=None, verdict=Verdict.PASS,
                                                  metrics=(metric,), tool={}, host={}))  # fmt: skip
        assert f"< {least} and" in rules(told)["QuantplanDecodeSlow"]["expr"]


def test_without_a_speed_there_is_no_alert_of_one(told: Deployment) -> None:
    silent = replace(told, plan=replace(told.plan, decode_tokens_per_s=None))
    assert "QuantplanDecodeSlow" not in rules(silent)
    assert any("no alert of a slow decode" in note for note in export("prometheus", (silent,)).notes)
    with pytest.raises(TargetTooOld, match=r"prometheus 2\.20 is too old: authorization needs 2\.26"):
        export("prometheus", (told,), version="2.20")


@pytest.mark.tools
@pytest.mark.build
def test_every_metric_is_one_that_is_really_served(tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> None:
    found = deployed(tiny, tmp_path, target=Target(port=free_port()), decode_tokens_per_s=speed(100))
    named = set(
        re.findall(r"\b(?:llamacpp:|quantplan_gateway_)\w+", " ".join(rule["expr"] for rule in rules(found).values()))
    )
    assert len(named) > 8
    with (
        running_engine(found, toolchain),
        front_door(tmp_path / "door", {found.alias: found.plan}, engine_port=found.target.port) as door,
    ):
        assert ask(f"{door.url}/v1/chat/completions", chat("Hi"))[0] == 200
        text = ask(f"http://127.0.0.1:{found.target.port}/metrics")[2].decode() + ask(f"{door.url}/metrics")[2].decode()
    served = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert named <= served
