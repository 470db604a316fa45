"""The whole road with the installed console script and no fakes: plan, build, gate, serve, complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.places import data_file

QUANTPLAN = shutil.which("quantplan", path=str(Path(sys.executable).parent)) or "quantplan"
PROMPT = "The next day "
pytestmark = [pytest.mark.tools, pytest.mark.build]


def quantplan(*words: str | Path, cwd: Path, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [QUANTPLAN, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def document(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(data_file("schemas", f"{name}-1.schema.json").read_text()))
    return told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, toolchain: Any) -> Path:
    """The bundled model at Q4_K_M, built once for this module."""
    folder = tmp_path_factory.mktemp("road")
    before = os.times()
    done = quantplan("build", "quantplan-tiny", "--quant", "Q4_K_M", "--json", cwd=folder)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    (folder / "processor-seconds").write_text(str(spent))
    told = document(done, "build")
    assert told["data"]["verdict"] == "pass"
    assert told["engine"]["commit"] == "0c1e570"
    return folder


def test_the_build_takes_less_than_a_minute(built: Path) -> None:
    """In processor time, all programs together: what the machine does beside it does not count."""
    assert float((built / "processor-seconds").read_text()) < 60


def test_the_artifact_folder(built: Path) -> None:
    folder = built / "artifacts" / "quantplan-tiny-Q4_K_M"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "artifact.json", "plan.json", "quantplan-tiny-Q4_K_M.gguf", "results"]
    for file, schema in (("artifact.json", "artifact-1"), ("plan.json", "plan-1")):
        jsonschema.validate(
            json.loads((folder / file).read_text()),
            json.loads(data_file("schemas", f"{schema}.schema.json").read_text()),
        )
    receipt = json.loads((folder / "artifact.json").read_text())
    text = json.dumps(receipt)
    assert str(built) not in text
    assert str(Path.home()) not in text
    assert [step["name"] for step in receipt["steps"]][:2] == ["convert", "quantize Q4_K_M"]
    assert {entry["name"] for entry in receipt["texts"]} == {"prose", "code", "chat", "language", "sums"}
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["source"]["sha256"] == receipt["files"][0]["sha256"]
    assert plan["quant"] == "Q4_K_M"
    card = (folder / "README.md").read_text()
    assert "base_model_relation: quantized" in card
    assert "verdict: **pass**" in card
    gguf = (folder / "quantplan-tiny-Q4_K_M.gguf").read_bytes()
    assert str(built).encode() not in gguf


def test_a_second_build_does_nothing_again(built: Path) -> None:
    told = json.loads(quantplan("build", "quantplan-tiny", "--json", cwd=built).stdout)
    assert [one["fresh"] for one in told["data"]["artifacts"]] == [False]
    assert len(list((built / "artifacts" / "quantplan-tiny-Q4_K_M" / "results").iterdir())) == 1


def test_q2_k_fails_its_gate_and_is_not_served(built: Path) -> None:
    done = quantplan("build", "quantplan-tiny", "--quant", "Q2_K", "--json", cwd=built, expect=4)
    told = document(done, "build")
    assert told["ok"] is False
    assert told["data"]["artifacts"][0]["verdict"] == "fail"
    refused = quantplan("serve", "artifacts/quantplan-tiny-Q2_K", "--port", str(free_port()), cwd=built, expect=4)
    assert "its newest gate result is fail, not pass" in refused.stderr


def test_serve_completes_as_the_bindings_do(built: Path, toolchain: Any) -> None:
    """Token for token: the served model's greedy completion is llama-cpp-python's on the same file."""
    port = free_port()
    server = subprocess.Popen(
        [QUANTPLAN, "serve", "artifacts/quantplan-tiny-Q4_K_M", "--port", str(port), "--json"],
        cwd=built, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        jsonschema.validate(ready, json.loads(data_file("schemas", "serve-1.schema.json").read_text()))
        assert ready["data"]["url"] == f"http://127.0.0.1:{port}"
        body = json.dumps({"prompt": PROMPT, "n_predict": 24, "temperature": 0, "return_tokens": True,
                           "cache_prompt": False}).encode()  # fmt: skip
        request = urllib.request.Request(
            f"{ready['data']['url']}/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = json.loads(answer.read())
        props = json.loads(urllib.request.urlopen(f"{ready['data']['url']}/props", timeout=10).read())
        assert props["total_slots"] == ready["data"]["plan"]["n_parallel"]
        assert props["default_generation_settings"]["n_ctx"] == ready["data"]["plan"]["n_ctx_per_slot"]
        busy = quantplan("serve", "artifacts/quantplan-tiny-Q4_K_M", "--port", str(port), cwd=built, expect=1)
        assert f"127.0.0.1:{port} is already in use" in busy.stderr
        assert f"--port {port + 1}" in busy.stderr
    finally:
        server.send_signal(signal.SIGINT)
        try:
            stopped = server.wait(timeout=30)
        finally:
            server.kill()
        assert stopped == 0
        assert server.stdout is not None
        server.stdout.close()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    assert len(served["tokens"]) > 3
    assert served["tokens"] == _bindings_tokens(built, toolchain, len(served["tokens"]))


def _bindings_tokens(built: Path, toolchain: Any, n: int) -> list[int]:
    """Greedy tokens of llama-cpp-python in a process of its own, on the toolchain's libraries."""
    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from quantplan.llama.binding import load_bindings\nfrom quantplan.llama.toolchain import find_toolchain\n"
        "llama_cpp = load_bindings(find_toolchain())\n"
        "llm = llama_cpp.Llama(sys.argv[1], n_ctx=2048, n_threads=2, verbose=False, flash_attn=False)\n"
        "prompt = llm.tokenize(sys.argv[2].encode(), add_bos=True, special=True)\n"
        "out = []\n"
        "for token in llm.generate(prompt, temp=0.0, top_k=1):\n"
        "    out.append(token)\n"
        "    if len(out) == int(sys.argv[3]) or token == llm.token_eos(): break\n"
        "print(json.dumps(out))\n"
    )
    model = built / "artifacts" / "quantplan-tiny-Q4_K_M" / "quantplan-tiny-Q4_K_M.gguf"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), PROMPT, str(n)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def test_a_changed_byte_is_refused(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(built / "artifacts" / "quantplan-tiny-Q4_K_M", copy)
    model = copy / "quantplan-tiny-Q4_K_M.gguf"
    data = bytearray(model.read_bytes())
    data[-100] ^= 1
    model.write_bytes(bytes(data))
    done = quantplan("serve", copy, "--port", str(free_port()), cwd=tmp_path, expect=4)
    assert "sha256 is" in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "Hint: " in done.stderr


def test_a_tokenizer_that_cannot_be_read_is_refused_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "broken"
    shutil.copytree(data_file("bundled", "quantplan-tiny"), source)
    (source / "tokenizer.model").write_bytes(b"no tokenizer")
    done = quantplan("build", source, "--json", cwd=tmp_path, expect=1)
    told = json.loads(done.stdout)
    assert told["data"] is None
    assert told["error"]["kind"] == "TokenizerRefused"
    assert told["error"]["exit_code"] == 1
    assert not (tmp_path / "artifacts").exists()


def test_weights_cut_short_are_refused_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "cut"
    shutil.copytree(data_file("bundled", "quantplan-tiny"), source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    done = quantplan("build", source, cwd=tmp_path, expect=1)
    assert "model.safetensors: " in done.stderr
    assert not (tmp_path / "artifacts").exists()


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello")
    done = quantplan("build", "quantplan-tiny", "--text", "short.txt", cwd=tmp_path, expect=1)
    assert "short.txt: " in done.stderr
    assert "at least 1024 are needed" in done.stderr
    assert not list((tmp_path / "artifacts").glob("quantplan-tiny-*"))
