"""`quantplan serve --gateway` as people start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from serving.gateway.front_door import ask, chat
from serving.gateway.test_gateway_live import NEVER_ENDING, error_of, events, wait_until
from serving.tiny_plan import free_port

from quantplan.artifact.store import Artifact
from quantplan.places import data_file

pytestmark = [pytest.mark.tools, pytest.mark.build]
ROOT = Path(__file__).resolve().parents[3]
CHAT = "/v1/chat/completions"


def serve(*words: object, state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "quantplan", "serve", *map(str, words)], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QUANTPLAN_STATE": str(state)},
    )  # fmt: skip


def ready(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    assert child.stderr is not None
    first = child.stdout.readline()
    assert first, child.stderr.read()
    threading.Thread(target=child.stdout.read, daemon=True).start()
    told: dict[str, Any] = json.loads(first)
    jsonschema.validate(told, json.loads(data_file("schemas", "serve-1.schema.json").read_text()))
    data: dict[str, Any] = told["data"]
    return data


def test_engine_and_gateway_start_survive_a_kill_and_end_together(tiny: Artifact, tmp_path: Path) -> None:
    port, keys = free_port(), tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("sesame name=me\n")
    child = serve(tiny.folder, "--gateway", "--port", port, "--api-key-file", keys, "--json", state=tmp_path)
    try:
        told = ready(child)
        url = told["url"]
        assert url == f"http://127.0.0.1:{port}"
        assert str(port) not in told["argv"]  # the engine listens elsewhere
        assert ask(url + CHAT, chat("hello"), key="sesame")[0] == 200
        assert ask(url + CHAT, chat("hello"), key="other")[0] == 401
        engine_url = f"http://127.0.0.1:{told['argv'][told['argv'].index('--port') + 1]}"
        assert ask(engine_url + CHAT, chat("hello"), key="sesame")[0] == 401  # nobody goes round the door
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(
            ask(url + CHAT, chat("hello", stream=True, **NEVER_ENDING), key="sesame")))  # fmt: skip
        thread.start()
        wait_until(
            lambda: json.loads(ask(f"{url}/status", key="sesame")[2])["models"]["quantplan-tiny"]["running"] == 1
        )
        os.kill(told["pid"], signal.SIGKILL)
        thread.join(timeout=30)
        if answers[0][0] == 200:
            assert json.loads(events(answers[0][2])[-1])["error"]["code"] == "engine_ended"
        else:
            assert error_of(answers[0][2])["code"] == "engine_ended"
        wait_until(lambda: ask(f"{url}/readyz")[0] == 200, seconds=told["ready_s"] + 20)
        assert ask(url + CHAT, chat("hello"), key="sesame")[0] == 200
        below = [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
        assert below
        child.terminate()
        assert child.wait(timeout=30) == 0
        assert not any(psutil.pid_exists(pid) for pid in below)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_two_artifacts_behind_one_door(tiny: Artifact, tmp_path: Path) -> None:
    port = free_port()
    child = serve(tiny.folder, "--also", tiny.folder, "--gateway", "--port", port, "--max-tokens", 5, "--json",
                  state=tmp_path)  # fmt: skip
    try:
        url = ready(child)["url"]
        names = [model["id"] for model in json.loads(ask(f"{url}/v1/models")[2])["data"]]
        assert names == ["quantplan-tiny", "quantplan-tiny-Q4_K_M"]
        for name in names:
            status, _, body = ask(url + CHAT, chat("hello", model=name, max_tokens=50, ignore_eos=True))
            assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 5)
        loaded = [model["loaded"] for model in json.loads(ask(f"{url}/status")[2])["models"].values()]
        assert loaded == [True, True]  # there is room for both
        child.terminate()
        assert child.wait(timeout=40) == 0
    finally:
        child.kill()
        child.communicate()


def test_a_port_in_use_and_a_key_others_may_read(tiny: Artifact, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        child = serve(tiny.folder, "--gateway", "--port", port, state=tmp_path)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (1, "")
        assert f"Error: 127.0.0.1:{port} is already in use" in err
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    keys.chmod(0o644)
    child = serve(tiny.folder, "--gateway", "--port", free_port(), "--api-key-file", keys, state=tmp_path)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (1, "")
    assert "sesame" not in err
    assert "can be read" in err


def test_without_the_extra_the_hint_is_what_to_install(tiny: Artifact, tmp_path: Path) -> None:
    """In a Python where uvicorn cannot be imported."""
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text(
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'uvicorn': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, No())\n"
    )
    child = subprocess.run(
        [sys.executable, "-m", "quantplan", "serve", str(tiny.folder), "--gateway", "--port", str(free_port())],
        text=True, cwd=ROOT, capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "QUANTPLAN_STATE": str(tmp_path)},
    )  # fmt: skip
    assert child.returncode == 1
    assert child.stderr.splitlines()[-2:] == [
        "Error: the gateway extra is not installed (uvicorn)", "Hint: pip install 'quantplan[gateway]'"
    ]  # fmt: skip
