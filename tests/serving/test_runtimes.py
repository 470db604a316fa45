"""The other engines: llama-cpp-python's server for real, vLLM and Ollama by what they would be told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving.tiny_plan import bare_plan, free_port, planned

from quantplan.artifact.store import Artifact
from quantplan.errors import BadValue, ToolMissing
from quantplan.llama.types import Toolchain
from quantplan.serving.contract import Expected, Status, Tier, expected_of
from quantplan.serving.runtimes import Launch, Runtime, Serving, launch_of, url_of
from quantplan.serving.source import Served
from quantplan.serving.supervise import Supervisor
from quantplan.serving.verify import verify


@contextmanager
def served(launch: Launch, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("QUANTPLAN_STATE", str(state))
    supervisor = Supervisor(launch, on_event=lambda _event: None)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        supervisor.run()


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.bindings
def test_llama_cpp_python_is_held_to_the_same_contract(
    tiny: Artifact, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = tiny.receipt.model_file.sha256
    plan = planned(tiny.model, sha256=digest, n_parallel=1, kv_unified=False, n_ctx_per_slot=512, type_k="q8_0",
                   type_v="q8_0")  # fmt: skip
    key = tmp_path / "key"
    key.write_text("of-the-test\n")
    key.chmod(0o600)
    serving = Serving(host="127.0.0.1", port=free_port(), api_key_file=key)
    launch = launch_of(Runtime.LLAMA_CPP_PYTHON, plan, model=tiny.model, serving=serving, tools=toolchain,
                       work=tmp_path)  # fmt: skip
    assert launch.cannot == ()
    assert "of-the-test" not in " ".join(launch.argv)
    monkeypatch.setenv("CONFIG_FILE", "/no/such/file")  # of the caller: none of these reaches the engine
    monkeypatch.setenv("SEED", "7")
    with served(launch, tmp_path, monkeypatch) as supervisor:
        expected = expected_of(Served(model=tiny.model, plan=plan, artifact=tiny), key="of-the-test")
        report = verify(launch.url, expected)
        assert (report.runtime, report.tier, report.pid) == ("llama-cpp-python", Tier.LOCAL, supervisor.pid)
        assert report.exit_code == 0, [item for item in report.items if item.status is not Status.OK]
        for changes in ({"n_ctx_per_slot": 1024}, {"type_k": "f16"}, {"n_parallel": 4}, {"n_batch": 64}):
            (name,) = changes
            other = replace(expected, plan=replace(plan, **changes))
            assert name in mismatched(launch.url, other)
        assert "model sha256" in mismatched(launch.url, replace(expected, hashes=frozenset({"0" * 64})))
        afar = verify(launch.url, expected, remote_only=True)
        assert afar.exit_code == 5
        assert "type_k" in afar.unverified
        assert verify(launch.url, expected, remote_only=True, require="remote").exit_code == 0


def mismatched(url: str, expected: Expected) -> list[str]:
    return [item.name for item in verify(url, expected).items if item.status is Status.MISMATCH]


@pytest.mark.tools
def test_several_slots_are_said_to_be_lost(toolchain: Toolchain, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp.server.settings" if os.environ.get("LLAMA_CPP_LIB_PATH") else "fastapi")
    serving = Serving(host="127.0.0.1", port=1)
    launch = launch_of(Runtime.LLAMA_CPP_PYTHON, bare_plan(n_parallel=3), model=Path("m.gguf"), serving=serving,
                       tools=toolchain, work=tmp_path)  # fmt: skip
    assert launch.cannot == ("llama-cpp-python's server answers one request at a time: 3 slots are planned",)


def program(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something of that name on PATH."""
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_vllm_is_told_what_it_has_words_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "vllm", monkeypatch)
    key = tmp_path / "key"
    key.write_text("secret\n")
    plan = bare_plan(source={"repo": "org/name", "revision": "abc", "file": None, "sha256": None})
    serving = Serving(host="127.0.0.1", port=8000, api_key_file=key)
    launch = launch_of(Runtime.VLLM, plan, model=Path("m.gguf"), serving=serving, tools=None, work=tmp_path)
    assert launch.argv[1:] == (
        "serve", "org/name", "--served-model-name", "quantplan-tiny", "--max-model-len", "1024", "--max-num-seqs", "2",
        "--tensor-parallel-size", "1", "--host", "127.0.0.1", "--port", "8000", "--revision", "abc",
    )  # fmt: skip
    assert launch.env == {"VLLM_API_KEY": "secret"}
    assert launch.cannot[0] == "vLLM serves org/name in its own precision, not the Q4_K_M that was validated"
    with pytest.raises(BadValue, match="names no repository"):
        launch_of(Runtime.VLLM, bare_plan(), model=Path("m"), serving=serving, tools=None, work=tmp_path)


def test_ollama_is_told_by_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "ollama", monkeypatch)
    serving = Serving(host="127.0.0.1", port=11434)
    plan = bare_plan(type_k="q8_0", type_v="f16", flash_attn="off")
    launch = launch_of(Runtime.OLLAMA, plan, model=Path("/m.gguf"), serving=serving, tools=None, work=tmp_path)
    told = {name: launch.env[name] for name in ("OLLAMA_HOST", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_NUM_PARALLEL",
                                                "OLLAMA_KV_CACHE_TYPE", "OLLAMA_FLASH_ATTENTION")}  # fmt: skip
    assert tuple(told.values()) == ("127.0.0.1:11434", "1024", "2", "q8_0", "0")
    assert (tmp_path / "Modelfile").read_text().splitlines()[:2] == ["FROM /m.gguf", "PARAMETER num_ctx 1024"]
    assert launch.setup[1:3] == ("create", "quantplan-tiny")
    assert launch.cannot[0] == "Ollama has one KV type for K and V: q8_0, not f16 for V"


@pytest.mark.parametrize("runtime", [Runtime.VLLM, Runtime.OLLAMA])
def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=f"{runtime.value} is not installed"):
        launch_of(runtime, bare_plan(), model=Path("m"), serving=Serving(host="::1", port=1), tools=None, work=tmp_path)


@pytest.mark.parametrize(("host", "url"), [
    ("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"),
    ("::1", "http://[::1]:80"), ("localhost", "http://localhost:80"),
])  # fmt: skip
def test_where_it_is_reached(host: str, url: str) -> None:
    assert url_of(host, 80) == url


STUB = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
answers = json.loads(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = answers.get(self.path, [404, {"error": {"message": "no"}}])
        raw = json.dumps(body).encode() if not isinstance(body, str) else body.encode()
        self.send_response(status); self.send_header("Content-Length", str(len(raw))); self.end_headers()
        self.wfile.write(raw)
    do_GET = do_POST = answer
    def log_message(self, *words): pass
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("up", flush=True)
server.serve_forever()
"""


@contextmanager
def stub(answers: dict[str, Any], *words: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """A process that answers as an engine's documentation says it does: the engines themselves are not here."""
    import json

    port = free_port()
    child = subprocess.Popen([sys.executable, "-c", STUB, str(port), json.dumps(answers), *words],
                             stdout=subprocess.PIPE, env={**os.environ, **(env or {})})  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


CHAT = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
OPENAI: dict[str, Any] = {"/v1/chat/completions": [200, CHAT], "/v1/completions": [200, {"choices": [{"text": "a"}]}]}


def test_vllm_by_its_answers_and_its_command_line() -> None:
    models = {"data": [{"id": "quantplan-tiny", "owned_by": "vllm", "max_model_len": 1024}]}
    flags = ("--max-model-len", "1024", "--max-num-seqs=4")
    with stub({**OPENAI, "/v1/models": [200, models]}, *flags) as url:
        report = verify(url, Expected(plan=bare_plan()))
    told = {(item.name, item.tier): item.status for item in report.items}
    assert report.runtime == "vllm"
    assert told["n_ctx_per_slot", Tier.REMOTE] is Status.OK
    assert told["n_ctx_per_slot", Tier.LOCAL] is Status.OK
    assert told["n_parallel", Tier.LOCAL] is Status.MISMATCH
    assert told["context limit", Tier.REMOTE] is Status.MISMATCH  # the stub answers 200 to anything
    assert told["type_k", Tier.LOCAL] is Status.NOT_VERIFIABLE


def test_ollama_by_its_answers_and_its_environment() -> None:
    answers = {**OPENAI, "/api/version": [200, {"version": "0.9"}],
               "/v1/models": [200, {"data": [{"id": "quantplan-tiny:latest", "owned_by": "library"}]}],
               "/api/ps": [200, {"models": [{"context_length": 2048}]}]}  # fmt: skip
    with stub(answers, env={"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_CONTEXT_LENGTH": "1024"}) as url:
        report = verify(url, Expected(plan=bare_plan()))
    told = {(item.name, item.tier): item.status for item in report.items}
    assert report.runtime == "ollama"
    assert told["model", Tier.REMOTE] is Status.OK
    assert told["n_parallel", Tier.LOCAL] is Status.OK
    assert told["n_ctx_per_slot", Tier.REMOTE] is Status.MISMATCH
    assert told["type_k", Tier.LOCAL] is Status.MISMATCH


def test_an_unknown_engine_is_not_taken_for_one_of_ours() -> None:
    with stub({**OPENAI, "/v1/models": [200, {"data": [{"id": "quantplan-tiny", "owned_by": "acme"}]}]}) as url:
        report = verify(url, Expected(plan=bare_plan()))
    assert report.runtime == "unknown"
    assert report.exit_code == 4  # it answers 200 to one token over the context
    assert "settings" in report.unverified
