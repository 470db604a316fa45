"""A thousand requests of the worst kind, and an engine that is killed among them: every one ends, nothing leaks."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from serving.gateway.front_door import ask, chat, front_door
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server
from quantplan.units import MIB

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.slow]
CHAT = "/v1/chat/completions"
KEY = "sesame"
N_REQUESTS, N_WARM, N_CLIENTS = 1000, 250, 12


def raw_request(port: int, body: bytes, key: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def stream_outcome(body: bytes) -> str:
    """done, or the code of its last event; anything else is no clean answer."""
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    if events and events[-1] == "[DONE]":
        return "done"
    return str(json.loads(events[-1])["error"]["code"]) if events else "empty"


class Crowd:
    """Clients that each take the next number and do what its random choice says."""

    def __init__(self, url: str, port: int) -> None:
        self.url, self.port = url, port
        self.outcomes: Counter[str] = Counter()
        self.bad: list[str] = []
        self._lock = threading.Lock()
        self._next = 0

    def run(self, n: int) -> None:
        end = self._next + n
        threads = [threading.Thread(target=self._work, args=(end,)) for _ in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=200)
            assert not thread.is_alive(), "a request hangs"

    def _work(self, end: int) -> None:
        while True:
            with self._lock:
                number = self._next
                if number >= end:
                    return
                self._next += 1
            try:
                kind, outcome, good = self.one(random.Random(number))
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                kind, outcome, good = "unclean", repr(error), False
            with self._lock:
                self.outcomes[f"{kind}: {outcome}"] += 1
                if not good:
                    self.bad.append(f"{number} {kind}: {outcome}")

    def one(self, chance: random.Random) -> tuple[str, str, bool]:
        kind = chance.choice(
            ("stream", "stream", "whole", "abort", "abort", "oversize", "not json", "wrong key", "torn")
        )
        answered = chance.randint(1, 60)
        if kind in ("stream", "whole"):
            status, _, body = ask(self.url + CHAT, chat("hello", stream=kind == "stream", max_tokens=answered), key=KEY)
            if status == 200:
                outcome = stream_outcome(body) if kind == "stream" else "done" if json.loads(body)["choices"] else "?"
                return kind, outcome, outcome in ("done", "engine_ended")
            code = json.loads(body)["error"]["code"] if body else "no answer"
            return kind, code, (status, code) in (
                (429, "rate_limit_exceeded"), (502, "engine_ended"), (503, "engine_unavailable"))  # fmt: skip
        if kind in ("abort", "torn"):
            body = json.dumps(chat("hello", stream=True, max_tokens=200, ignore_eos=True)).encode()
            connection = raw_request(self.port, body, KEY)
            if kind == "torn":
                connection.shutdown(socket.SHUT_WR)
            time.sleep(chance.random() * 0.05)
            connection.close()
            return kind, "left", True
        if kind == "oversize":
            status, _, body = ask(self.url + CHAT, chat("word " * chance.choice((1100, 5000))), key=KEY)
            code = json.loads(body)["error"]["code"] if body else "no answer"
            # while the engine is away nobody can count
            expected = ("context_length_exceeded", "rate_limit_exceeded", "engine_unavailable", "engine_ended")
            return kind, code, code in expected
        raw = b'{"messages": [' if kind == "not json" else json.dumps(chat("x")).encode()
        status, _, body = ask(self.url + CHAT, raw, key="wrong" if kind == "wrong key" else KEY)
        code = json.loads(body)["error"]["code"] if body else "no answer"
        return kind, code, code == ("invalid_api_key" if kind == "wrong key" else "invalid_json")


def test_a_thousand_requests(tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> None:
    plan = read_plan(tiny.folder / "plan.json")
    settings = server_settings(plan, model=tiny.model, port=free_port())
    found = unified_per_slot(toolchain)

    def start():  # type: ignore[no-untyped-def]
        return running_server(toolchain, settings, unified_per_slot=found, log=lambda _line: None)

    plans = {"quantplan-tiny": plan}
    with (
        start() as first,
        front_door(tmp_path, plans, engine_port=settings.port, keys=f"{KEY}\n", queue=4 * N_CLIENTS) as door,
    ):
        crowd = Crowd(door.url, door.port)
        process = psutil.Process(door.child.pid)
        crowd.run(N_WARM)
        before, files = process.memory_info().rss, process.num_fds()
        half = (N_REQUESTS - N_WARM) // 2
        killer = threading.Timer(1.0, lambda: first.child.send_signal(signal.SIGKILL))
        killer.start()
        crowd.run(half)
        killer.join()
        first.child.wait()
        with start():
            crowd.run(N_REQUESTS - N_WARM - half)
            deadline = time.monotonic() + 20
            while True:
                told = json.loads(ask(f"{door.url}/status", key=KEY)[2])["models"]["quantplan-tiny"]
                if told["running"] == told["waiting"] == 0 and process.num_fds() <= files + 2:
                    break
                assert time.monotonic() < deadline, (told, process.num_fds(), files)
                time.sleep(0.1)
            assert ask(door.url + CHAT, chat("hello"), key=KEY)[0] == 200
        grown = process.memory_info().rss - before
        assert crowd.bad == []
        assert sum(crowd.outcomes.values()) == N_REQUESTS
        assert grown < 4 * MIB, grown
        assert crowd.outcomes["stream: done"] > 0
        assert crowd.outcomes["whole: done"] > 0
        assert crowd.outcomes["stream: engine_unavailable"] > 0
        assert crowd.outcomes["oversize: context_length_exceeded"] > 0
    assert door.child.returncode in {0, -signal.SIGTERM}
