"""`quantplan serve` as people start it: kept running, ended cleanly, and refused with a reason."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from serving.engine import alive
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Margin, Plan, read_plan, write_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.types import Toolchain
from quantplan.places import data_file
from quantplan.units import MIB

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.tools, pytest.mark.build]


@dataclass(slots=True)
class Serve:
    """A running `quantplan serve --json`: its ready document and its events as they come."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    events: list[dict[str, Any]]
    port: int

    def wait_for(self, kind: str, *, seconds: float = 60, after: int = 0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events[after:]:
                if event["kind"] == kind:
                    return event
            time.sleep(0.02)
        raise AssertionError(f"no {kind} in {[event['kind'] for event in self.events]}")

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "quantplan", "serve", *map(str, words)]


def environment(state: Path, **env: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "QUANTPLAN_STATE": str(state), **env}


@contextmanager
def serving(artifact: Path, state: Path, *words: object) -> Iterator[Serve]:
    port = free_port()
    process = subprocess.Popen(
        command(artifact, "--port", port, "--json", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(state),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    if not first:
        pytest.fail(process.stderr.read())
    told = json.loads(first)
    jsonschema.validate(told, json.loads(data_file("schemas", "serve-1.schema.json").read_text()))
    run = Serve(process=process, ready=told["data"], events=[], port=port)
    readers = [threading.Thread(target=_collect, args=(process.stdout, run.events), daemon=True),
               threading.Thread(target=process.stderr.read, daemon=True)]  # fmt: skip
    for reader in readers:
        reader.start()
    try:
        yield run
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            for reader in readers:
                reader.join(timeout=10)
            process.stdout.close()
            process.stderr.close()


def _collect(lines: Any, events: list[dict[str, Any]]) -> None:
    for line in lines:
        told = json.loads(line)
        events.append(told["data"] or {"kind": "error", "text": told["error"]["message"]})


def refused(*words: object, state: Path, status: int, **env: str) -> str:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False, env=environment(state, **env),
                          timeout=120)  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Hint: ")]
    return done.stderr


def generate(port: int, n_predict: int) -> http.client.HTTPResponse:
    """A streamed completion that goes on for so many tokens."""
    body = {"prompt": "Hello", "n_predict": n_predict, "ignore_eos": True, "stream": True, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer = urllib.request.urlopen(request, timeout=120)
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def variant(tiny: Artifact, folder: Path, **changes: Any) -> Path:
    """The artifact with another plan."""
    copy = folder / "artifact"
    shutil.copytree(tiny.folder, copy)
    plan = replace(read_plan(copy / "plan.json"), **changes)
    write_plan(copy / "plan.json", plan)
    return copy


@pytest.fixture(autouse=True)
def _tools(toolchain: Toolchain) -> None:
    """Every test here starts the engine or gets as far as looking for it."""


def test_killed_under_load_it_is_back_within_two_seconds_and_repeats_nothing(tiny: Artifact, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path) as run:
        ends: list[str] = []

        def ask() -> None:
            try:
                text = generate(run.port, 900).read().decode()
                ends.append("whole" if '"stop":true' in text else "cut")
            except (OSError, http.client.HTTPException) as error:
                ends.append(type(error).__name__)

        askers = [threading.Thread(target=ask) for _ in range(4)]  # two slots: two run, two wait
        for asker in askers:
            asker.start()
        run.wait_for("request_started")
        time.sleep(0.2)
        killed, seen = time.monotonic(), len(run.events)
        os.kill(run.ready["pid"], signal.SIGKILL)
        deadline = killed + 60
        while not healthy(run.port) and time.monotonic() < deadline:
            time.sleep(0.02)
        back = time.monotonic() - killed
        ready = run.wait_for("ready", after=seen)
        for asker in askers:
            asker.join(timeout=60)
        assert not any(asker.is_alive() for asker in askers)
        assert len(ends) == 4
        assert "whole" not in ends
        crashed = run.wait_for("crashed", after=seen)
        assert crashed["data"]["status"] == -9
        assert ready["data"]["pid"] != run.ready["pid"]
        assert back < ready["data"]["seconds"] + 2
        assert "request_started" not in run.kinds()[run.events.index(ready) :]
        with generate(run.port, 8) as answer:
            assert b'"stop":true' in answer.read()


def test_it_gives_up_after_so_many_crashes(tiny: Artifact, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path, "--restarts", 1) as run:
        seen = len(run.events)
        os.kill(run.ready["pid"], signal.SIGKILL)
        second = run.wait_for("ready", after=seen)["data"]["pid"]
        os.kill(second, signal.SIGKILL)
        assert run.process.wait(timeout=30) == 1
        assert "the engine ended 2 times in " in run.wait_for("error")["text"]
    assert not healthy(run.port)


def test_sigterm_lets_a_running_request_end_and_takes_no_new_one(tiny: Artifact, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path) as run:
        answer = generate(run.port, 900)
        answer.readline()
        run.process.send_signal(signal.SIGTERM)
        draining = run.wait_for("draining")
        assert draining["data"] == {"busy": 1, "still_accepting": None}
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", run.port), timeout=0.3):
            pass
        assert b'"stop":true' in answer.read()
        answer.close()
        assert run.process.wait(timeout=30) == 0
        run.wait_for("stopped")
    assert not alive(run.ready["pid"])
    assert not list((tmp_path / "running").iterdir())


def test_a_request_that_does_not_end_is_cut_off_at_the_limit(tiny: Artifact, tmp_path: Path) -> None:
    endless = variant(tiny, tmp_path, n_ctx_per_slot=2048, n_parallel=1, kv_unified=False)
    with serving(endless, tmp_path / "state", "--drain", "0.1") as run, generate(run.port, 2000) as answer:
        answer.readline()
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(timeout=30) == 0
        assert any("cut off" in (event["text"] or "") for event in run.events if event["kind"] == "warning")


def test_the_engine_ends_with_its_keeper(tiny: Artifact, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path) as run:
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 20
        while healthy(run.port) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not healthy(run.port)


def test_a_key_file_is_made_protected_and_asked_for(tiny: Artifact, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    with serving(tiny.folder, tmp_path / "state", "--api-key-file", key_file) as run:
        assert key_file.stat().st_mode & 0o777 == 0o600
        key = key_file.read_text().strip()
        assert len(key) >= 32
        assert not any(key in word for word in run.ready["argv"])
        with pytest.raises(urllib.error.HTTPError) as wrong:
            urllib.request.urlopen(f"http://127.0.0.1:{run.port}/v1/models", timeout=10)
        wrong.value.close()
        assert wrong.value.code == 401
        checked = verified(run, tiny, "--api-key-file", key_file, state=tmp_path / "state")
        assert checked["verdict"] == "ok"
        verified_not(run, tiny, says="API key is asked for by the server", state=tmp_path)
        other = tmp_path / "other"
        other.write_text("another\n")
        verified_not(run, tiny, "--api-key-file", other, says="API key is not one of the server's", state=tmp_path)
        names = {item["name"]: item["status"] for item in checked["items"]}
        assert names["wrong key"] == "ok"
        assert names["buffers"] == "ok"
        assert names["printed KV types"] == "ok"
        run.wait_for("unauthorized")


def verified(run: Serve, tiny: Artifact, *words: object, state: Path, status: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "quantplan", "verify-serving", f"http://127.0.0.1:{run.port}", "--plan",
         str(tiny.folder), "--json", *map(str, words)], capture_output=True, text=True, check=False, timeout=120,
        env=environment(state),
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads(data_file("schemas", "verify-serving-1.schema.json").read_text()))
    data: dict[str, Any] = told["data"]
    return data


def verified_not(run: Serve, tiny: Artifact, *words: object, says: str, state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantplan", "verify-serving", f"http://127.0.0.1:{run.port}", "--plan",
         str(tiny.folder), *map(str, words)], capture_output=True, text=True, check=False, timeout=120,
        env=environment(state),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_the_check_from_near_and_from_afar(tiny: Artifact, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path, "--watch", "0.2") as run:
        near = verified(run, tiny, "--require", "local", state=tmp_path)
        assert (near["tier"], near["pid"]) == ("local", run.ready["pid"])
        afar = verified(run, tiny, "--from-outside", state=tmp_path, status=5)
        assert afar["verdict"] == "not verifiable here"
        verified(run, tiny, "--from-outside", "--require", "remote", state=tmp_path)
        verified(run, tiny, "--from-outside", "--require", "local", state=tmp_path, status=5)
        memory = run.wait_for("memory")["data"]
        assert memory["available_bytes"] > 0
        assert isinstance(memory["over_plan_bytes"], int)
        schema = json.loads(data_file("schemas", "serve-event-1.schema.json").read_text())
        event = {"schema": "quantplan/serve-event/1", "ok": True, "data": run.events[0], "error": None, "warnings": [],
                 "quantplan": "x", "engine": None}  # fmt: skip
        jsonschema.validate(event, schema)


def test_a_plan_file_serves_its_model(tiny: Artifact, tmp_path: Path) -> None:
    plan = tmp_path / "elsewhere.json"
    write_plan(plan, read_plan(tiny.folder / "plan.json"))
    told = refused(plan, state=tmp_path, status=1)
    assert "is named by the plan and missing" in told
    with serving(plan, tmp_path, "--model", tiny.model) as run:
        assert run.ready["artifact_sha256"] == tiny.receipt.model_file.sha256


def test_the_model_file_of_a_plan_is_held_to_its_hash(tiny: Artifact, tmp_path: Path) -> None:
    model = tmp_path / tiny.model.name
    shutil.copyfile(tiny.model, model)
    write_plan(tmp_path / "p.json", read_plan(tiny.folder / "plan.json"))
    assert "has no receipt and no gate result" in refused(tmp_path / "p.json", state=tmp_path, status=4)
    with model.open("r+b") as file:
        file.seek(-50, os.SEEK_END)
        file.write(b"x")
    told = refused(tmp_path / "p.json", "--allow-unvalidated", state=tmp_path, status=4)
    assert "sha256 is" in told


def test_model_gone_or_changed(tiny: Artifact, tmp_path: Path) -> None:
    copy = variant(tiny, tmp_path)
    with (copy / tiny.model.name).open("r+b") as file:
        file.seek(-50, os.SEEK_END)
        file.write(b"x")
    assert "its receipt says" in refused(copy, state=tmp_path, status=4)
    (copy / tiny.model.name).unlink()
    assert "is named by the receipt and missing" in refused(copy, state=tmp_path, status=4)


def test_port_in_use(tiny: Artifact, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(tiny.folder, "--port", port, state=tmp_path, status=1)
    assert f"127.0.0.1:{port} is already in use" in told


def test_not_enough_memory_now_names_who_holds_it(tiny: Artifact, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"x = bytearray({512 * MIB}); x[::4096] = x[::4096]; print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        holder.stdout.readline()
        plan: Plan = read_plan(tiny.folder / "plan.json")
        host = replace(plan.memory[-1], context_bytes=2**50)
        copy = variant(tiny, tmp_path, memory=(host,))
        told = refused(copy, state=tmp_path, status=3)
        assert "needs 1,073,741," in told
        assert "MiB free now; held by " in told
        assert "(pid " in told
    finally:
        holder.stdin.close()
        holder.wait(timeout=10)
        holder.stdout.close()


def test_less_than_the_margin_is_a_warning(tiny: Artifact, tmp_path: Path) -> None:
    copy = variant(tiny, tmp_path, margin=(Margin(device="Host", bytes=2**50, why="a test"),))
    done = subprocess.run(command(copy, "--port", free_port(), "--prompt", "Hello"), capture_output=True, text=True,
                          check=False, env=environment(tmp_path), timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "less than the plan's margin" in done.stderr
    assert done.stdout.splitlines()[1].startswith("Hello. How can I help you this ")


def test_a_plan_for_another_machine(tiny: Artifact, tmp_path: Path) -> None:
    card = replace(read_plan(tiny.folder / "plan.json").memory[-1], name="CUDA7", capacity_bytes=24 * 1024**3)
    copy = variant(tiny, tmp_path, host_fingerprint="0" * 16, memory=(card,), threads=4096)
    told = refused(copy, state=tmp_path, status=4)
    assert "the plan was made for another machine" in told
    assert "CUDA7 is not here" in told
    assert "4096 threads are planned" in told
    assert "--any-host" in told
    only_name = variant(tiny, tmp_path / "b", host_fingerprint="0" * 16)
    assert "another machine" in refused(only_name, state=tmp_path, status=4)
    with serving(only_name, tmp_path, "--any-host") as run:
        assert healthy(run.port)


def test_a_public_address(tiny: Artifact, tmp_path: Path) -> None:
    assert "not asked for" in refused(tiny.folder, "--host", "0.0.0.0", state=tmp_path, status=2)
    told = refused(tiny.folder, "--host", "0.0.0.0", "--public", state=tmp_path, status=2)
    assert "there is no API key" in told
    words = ("--host", "0.0.0.0", "--public", "--api-key-file", tmp_path / "key")
    with serving(tiny.folder, tmp_path, *words) as run:
        assert run.ready["url"] == f"http://127.0.0.1:{run.port}"
        checked = verified(run, tiny, "--api-key-file", tmp_path / "key", state=tmp_path, status=4)
        assert [item["name"] for item in checked["items"] if item["status"] == "mismatch"] == ["bind"]
        verified(run, tiny, "--api-key-file", tmp_path / "key", "--public", state=tmp_path)


@pytest.mark.parametrize(("mode", "content", "says"), [
    (0o644, "secret\n", "can be read or written by others (mode 0644)"),
    (0o640, "secret\n", "can be read or written by its group (mode 0640)"),
    (0o600, "# nothing\n", "holds no key"),
])  # fmt: skip
def test_a_key_file_that_others_may_read(tiny: Artifact, tmp_path: Path, mode: int, content: str, says: str) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(content)
    key_file.chmod(mode)
    assert says in refused(tiny.folder, "--api-key-file", key_file, state=tmp_path, status=1)


@pytest.mark.parametrize("runtime", ["vllm", "ollama"])
def test_a_runtime_that_is_not_installed(tiny: Artifact, tmp_path: Path, runtime: str) -> None:
    told = refused(tiny.folder, "--runtime", runtime, "--port", free_port(), state=tmp_path, status=1, PATH="/nowhere")
    assert f"{runtime} is not installed" in told


def test_an_engine_that_dies_while_loading_says_why(tiny: Artifact, tmp_path: Path) -> None:
    wrong = variant(tiny, tmp_path, type_v="q4_0", flash_attn="off")
    told = refused(wrong, "--port", free_port(), state=tmp_path, status=1)
    assert "start llama-server: llama-server ended with status 1" in told
    assert "| " in told


def test_nobody_at_the_address(tiny: Artifact, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantplan", "verify-serving", f"http://127.0.0.1:{free_port()}", "--plan",
         str(tiny.folder)], capture_output=True, text=True, check=False, env=environment(tmp_path), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "no answer" in done.stderr
