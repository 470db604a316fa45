"""A real gateway process before a real llama-server: what passes, what is refused, and what the engine never sees."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving.gateway.conftest import Engine
from serving.gateway.front_door import FrontDoor, ask, chat, front_door
from serving.openai_clients import ClientUrl, check_all_clients
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server

pytestmark = [pytest.mark.tools, pytest.mark.build]
CHAT = "/v1/chat/completions"
NEVER_ENDING = {"max_tokens": 900, "ignore_eos": True}


def error_of(body: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(body)["error"]
    return told


def events(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]


def text_of(body: bytes) -> str:
    chunks = [json.loads(event) for event in events(body) if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def status_of(door: FrontDoor, key: str | None = None) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(f"{door.url}/status", key=key)[2])["models"]["quantplan-tiny"]
    return told


def wait_until(check: Any, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def sample(door: FrontDoor, name: str) -> float:
    """The sum of a metric's samples."""
    text = ask(f"{door.url}/metrics")[2].decode()
    rows = [line for line in text.splitlines() if line.startswith(f"quantplan_gateway_{name}")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in rows)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_the_engine_s(engine: Engine, door: FrontDoor, stream: bool) -> None:
    asked = chat("hello", max_tokens=24, stream=stream, seed=1)
    status, headers, body = ask(door.url + CHAT, asked, headers={"x-request-id": "mine-1"})
    _, direct_headers, direct = ask(engine.url + CHAT, asked)
    assert status == 200
    assert headers["x-request-id"] == "mine-1"
    assert headers["content-type"] == direct_headers["content-type"]
    if stream:
        assert text_of(body) == text_of(direct) != ""
        assert events(body)[-1] == "[DONE]"
    else:
        assert json.loads(body)["choices"] == json.loads(direct)["choices"]


def test_tokens_are_counted_as_the_engine_counts_them(door: FrontDoor) -> None:
    before = [sample(door, name) for name in ("prompt_tokens_total", "completion_tokens_total")]
    used = json.loads(ask(door.url + CHAT, chat("count this", max_tokens=5))[2])["usage"]
    ask(door.url + CHAT, chat("count this", max_tokens=5, stream=True))  # no usage in it: the timings are read
    after = [sample(door, name) for name in ("prompt_tokens_total", "completion_tokens_total")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [
        2 * used["prompt_tokens"], 2 * used["completion_tokens"]
    ]  # fmt: skip


def test_a_prompt_that_leaves_no_room_never_reaches_the_engine(engine: Engine, door: FrontDoor) -> None:
    n_ctx = engine.plan.n_ctx_per_slot

    def read_by_engine() -> str:
        text = ask(f"{engine.url}/metrics")[2].decode()
        return next(line for line in text.splitlines() if line.startswith("llamacpp:prompt_tokens_total"))

    before = read_by_engine()
    status, _, body = ask(door.url + CHAT, chat("word " * n_ctx))
    assert status == 400
    error = error_of(body)
    assert error["code"] == "context_length_exceeded"
    assert error["n_ctx"] == n_ctx
    direct = json.loads(ask(f"{engine.url}{CHAT}/input_tokens", chat("word " * n_ctx))[2])
    assert error["n_prompt_tokens"] == direct["input_tokens"]
    assert read_by_engine() == before


@pytest.mark.parametrize(("n_tokens", "status"), [(1023, 200), (1024, 400)])
def test_the_limit_is_exact(engine: Engine, door: FrontDoor, n_tokens: int, status: int) -> None:
    assert engine.plan.n_ctx_per_slot == 1024
    asked = {"prompt": [5] * n_tokens, "max_tokens": 1}
    assert ask(f"{door.url}/v1/completions", asked)[0] == status
    assert ask(f"{engine.url}/v1/completions", asked)[0] == status  # and it is the engine's own


def test_short_prompts_need_no_tokenizer_and_long_ones_are_counted(door: FrontDoor) -> None:
    def counts(how: str) -> float:
        text = ask(f"{door.url}/metrics")[2].decode()
        found = [line for line in text.splitlines() if "prompt_counts_total{" in line and f'how="{how}"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    bound, exact = counts("bound"), counts("exact")
    assert ask(door.url + CHAT, chat("short"))[0] == 200
    assert (counts("bound"), counts("exact")) == (bound + 1, exact)
    assert ask(door.url + CHAT, chat("Hello. " * 190, max_tokens=1))[0] == 200
    assert (counts("bound"), counts("exact")) == (bound + 1, exact + 1)


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b"", "invalid_json", "not JSON"),
        (b"[]", "invalid_json", "not an object"),
        (b"\xff\xfe", "invalid_json", "not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "invalid_json", "NaN"),
        (b"[" * 100_000, "invalid_json", "nested too deeply"),
        (b'{"messages": []}', "invalid_value", "messages"),
        (b'{"messages": ["x"]}', "invalid_value", "messages[0]"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "ten"}', "invalid_value", "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "invalid_value", "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 3}', "invalid_value", "3 answers at once"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 7}', "invalid_value", "model"),
    ],
)
def test_bad_requests_are_named(door: FrontDoor, raw: bytes, code: str, says: str) -> None:
    status, headers, body = ask(door.url + CHAT, raw)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert error_of(body)["code"] == code
    assert says in error_of(body)["message"]


def test_paths_methods_and_sizes(door: FrontDoor) -> None:
    assert ask(f"{door.url}/slots")[0] == 404  # the engine's, and nobody's business
    assert ask(f"{door.url}/lora-adapters", {})[0] == 404
    status, _, body = ask(door.url + CHAT)
    assert (status, error_of(body)["code"]) == (405, "method_not_allowed")
    assert ask(f"{door.url}/healthz")[0] == ask(f"{door.url}/readyz")[0] == ask(f"{door.url}/health")[0] == 200
    status, _, body = ask(f"{door.url}/v1/embeddings", {"input": "x"})
    assert status == 501  # the engine's own words for a model that embeds nothing
    assert "embeddings" in error_of(body)["message"]
    with socket.create_connection(("127.0.0.1", door.port)) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        raw.settimeout(10)
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_more_than_slots_and_queue_are_told_to_come_back(door: FrontDoor) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = []

    def go() -> None:
        answers.append(ask(door.url + CHAT, chat("hello", stream=True, **NEVER_ENDING)))

    threads = [threading.Thread(target=go) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    by_status = sorted(status for status, _, _ in answers)
    assert set(by_status) == {200, 429}
    assert by_status.count(200) >= 4  # two slots and two that wait
    refused = [answer for answer in answers if answer[0] == 429]
    assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in refused)
    assert all(error_of(body)["type"] == "rate_limit_error" for _, _, body in refused)
    assert all(events(body)[-1] == "[DONE]" for status, _, body in answers if status == 200)
    told = status_of(door)
    assert (told["running"], told["waiting"]) == (0, 0)
    assert told["suggested"]["n_parallel"] >= 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(engine: Engine, door: FrontDoor, stream: bool) -> None:
    engine.lines.clear()
    leaving = [http.client.HTTPConnection("127.0.0.1", door.port) for _ in range(3)]  # one of them waits
    for connection in leaving:
        connection.request("POST", CHAT, json.dumps(chat("hello", stream=stream, **NEVER_ENDING)),
                           {"Content-Type": "application/json"})  # fmt: skip
    wait_until(lambda: status_of(door)["running"] == 2 and status_of(door)["waiting"] == 1)
    for connection in reversed(leaving):
        assert connection.sock is not None
        connection.sock.close()
        connection.close()
    wait_until(lambda: status_of(door)["running"] == status_of(door)["waiting"] == 0, seconds=5)
    wait_until(lambda: not any(slot["is_processing"] for slot in json.loads(ask(f"{engine.url}/slots")[2])))
    if stream:  # of a whole answer the engine looks once a second whether anybody waits for it
        wait_until(lambda: sum("cancel task" in line for line in engine.lines) == 2)


def test_keys_and_what_each_may_have(engine: Engine, tmp_path: Path) -> None:
    keys = "alpha name=alice requests_per_minute=3\n# a comment\nbeta name=bob max_tokens=4 in_flight=1\n"
    plans = {"quantplan-tiny": engine.plan}
    with front_door(tmp_path, plans, engine_port=engine.port, keys=keys, max_tokens=6) as door:
        for path in (CHAT, "/metrics", "/status", "/v1/models", "/props"):
            body = chat("x") if path == CHAT else None
            for key in (None, "gamma"):
                status, headers, raw = ask(door.url + path, body, key=key)
                assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
                assert error_of(raw)["code"] == "invalid_api_key"
        assert ask(f"{door.url}/v1/models", key="beta")[0] == 200
        assert ask(f"{door.url}/readyz")[0] == 200
        status, headers, raw = ask(door.url + CHAT, chat("hello", max_tokens=50, ignore_eos=True), key="beta")
        assert (status, headers["x-max-tokens"]) == (200, "4")
        assert json.loads(raw)["usage"]["completion_tokens"] == 4
        without = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
        assert json.loads(ask(door.url + CHAT, without, key="alpha")[2])["usage"]["completion_tokens"] == 6
        statuses = [ask(door.url + CHAT, chat("x"), key="alpha")[0] for _ in range(3)]
        assert statuses == [200, 200, 429]
        text = ask(f"{door.url}/metrics", key="beta")[2].decode()
        assert 'key="alice"' in text
        assert "alpha" not in text


def test_the_metrics_are_prometheus_s(door: FrontDoor) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    ask(door.url + CHAT, chat("hello", stream=True))
    families = {family.name: family for family in text_string_to_metric_families(
        ask(f"{door.url}/metrics")[2].decode())}  # fmt: skip
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "request_seconds"):
        family = families[f"quantplan_gateway_{name}"]
        assert family.type == "histogram"
        count = next(one.value for one in family.samples if one.name.endswith("_count"))
        buckets = [one.value for one in family.samples if one.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count > 0
    assert families["quantplan_gateway_context_tokens"].samples[0].value == 1024


@pytest.mark.clients
@pytest.mark.filterwarnings("default")  # other people's packages warn as they like
def test_the_official_clients_work_unchanged(engine: Engine, node_modules: Path, tmp_path: Path) -> None:
    with front_door(tmp_path, {"quantplan-tiny": engine.plan}, engine_port=engine.port, keys="sesame\n") as door:
        told = check_all_clients(ClientUrl(base=f"{door.url}/v1", key="sesame"), node_modules)
    assert told["python"]["embeddings"] == told["node"]["embeddings"] == 501


def test_when_the_engine_dies_every_request_ends_and_none_is_repeated(
    tiny: Artifact, toolchain: Toolchain, tmp_path: Path
) -> None:
    plan = replace(read_plan(tiny.folder / "plan.json"), n_parallel=2)
    settings = server_settings(plan, model=tiny.model, port=free_port())
    lines: list[str] = []

    def start() -> Any:
        return running_server(toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lines.append)

    answers: dict[bool, tuple[int, dict[str, str], bytes]] = {}

    def go(stream: bool) -> None:
        answers[stream] = ask(door.url + CHAT, chat("hello", stream=stream, **NEVER_ENDING))

    with start() as running, front_door(tmp_path, {"quantplan-tiny": plan}, engine_port=settings.port) as door:
        threads = [threading.Thread(target=go, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        wait_until(lambda: status_of(door)["running"] == 2)
        wait_until(lambda: all(slot["is_processing"] for slot in json.loads(ask(f"{running.url}/slots")[2])))
        running.child.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(timeout=20)
            assert not thread.is_alive()
        running.child.wait()
        assert answers[True][0] in (200, 502)
        last = events(answers[True][2])[-1] if answers[True][0] == 200 else answers[True][2]
        assert json.loads(last)["error"]["code"] == "engine_ended"
        assert (answers[False][0], error_of(answers[False][2])["code"]) == (502, "engine_ended")
        status, headers, body = ask(door.url + CHAT, chat("hello"))
        assert (status, error_of(body)["code"]) == (503, "engine_unavailable")
        assert int(headers["retry-after"]) >= 1
        assert ask(f"{door.url}/readyz")[0] == 503
        assert ask(f"{door.url}/healthz")[0] == 200
        lines.clear()
        with start():
            assert ask(f"{door.url}/readyz")[0] == 200
            assert not any("launch_slot_" in line and "task" in line for line in lines)  # nothing came back by itself
            assert ask(door.url + CHAT, chat("hello"))[0] == 200


def test_told_to_stop_it_lets_running_answers_end(engine: Engine, tmp_path: Path) -> None:
    with front_door(tmp_path, {"quantplan-tiny": engine.plan}, engine_port=engine.port) as door:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(
            ask(door.url + CHAT, chat("hello", stream=True, **NEVER_ENDING))))  # fmt: skip
        thread.start()
        wait_until(lambda: status_of(door)["running"] == 1)
        door.child.terminate()
        door.child.wait(timeout=30)
        thread.join(timeout=10)
    assert answers[0][0] == 200
    assert events(answers[0][2])[-1] == "[DONE]"
