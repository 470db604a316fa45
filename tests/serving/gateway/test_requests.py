"""Reading requests, keys and metrics; places; and the preset file of the router."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from serving.gateway.test_limits import device, plan, sample

from quantplan.errors import BadKeyFile, BadValue, DoesNotFit
from quantplan.llama.router import preset_file
from quantplan.planner.plan import server_settings
from quantplan.serving.gateway.admission import Door
from quantplan.serving.gateway.asked import cap_answer, read_asked
from quantplan.serving.gateway.house import House
from quantplan.serving.gateway.keys import ANYONE, digest, find_key, read_keys
from quantplan.serving.gateway.limits import Wishes, derive
from quantplan.serving.gateway.metrics import Histogram, Metrics, quantile
from quantplan.serving.gateway.refusals import Refusal
from quantplan.serving.gateway.relay import Relay, Visit, read_counts
from quantplan.serving.gateway.router import most_together
from quantplan.serving.gateway.upstream import Engine, EngineEnded

CHAT = "/v1/chat/completions"


def asked(path: str = CHAT, **body: Any) -> Any:
    told = {"messages": [{"role": "user", "content": "hé"}]} if path == CHAT else {}
    return read_asked(path, json.dumps({**told, **body}).encode())


def test_plain_text_is_measured_in_bytes_and_anything_else_is_left_to_the_engine() -> None:
    assert (asked().text_bytes, asked().n_messages) == (3 + len("user"), 1)
    parts = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]}]
    assert asked(messages=parts).text_bytes == 4 + 3 + 2
    for more in ({"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"chat_template_kwargs": {"a": 1}}):
        assert asked(**more).text_bytes is None
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    assert asked(messages=image).text_bytes is None
    assert asked(messages=[{"role": "assistant", "content": None, "tool_calls": []}]).text_bytes is None


def test_how_many_slots_a_request_takes() -> None:
    assert asked(n=3).n_sequences == 3
    many = asked("/v1/completions", prompt=["a", "bcd"], n=2)
    assert (many.n_sequences, many.text_bytes, many.n_tokens) == (4, 3, 0)
    tokens = asked("/v1/completions", prompt=[[1, 2, 3], [4]])
    assert (tokens.n_sequences, tokens.text_bytes, tokens.n_tokens) == (2, 0, 3)
    assert asked("/v1/completions", prompt=[1, 2]).n_sequences == 1
    assert asked("/v1/completions", prompt=["a", 1, "b"]).text_bytes is None
    for bad in ({"prompt": None}, {"prompt": []}, {"prompt": "x", "n": 0}, {"prompt": "x", "n": True}):
        with pytest.raises(Refusal):
            asked("/v1/completions", **bad)


@pytest.mark.parametrize(
    ("given", "sent", "capped"),
    [
        ({}, {"max_tokens": 50}, 50),
        ({"max_tokens": 10}, {"max_tokens": 10}, None),
        ({"max_tokens": 80}, {"max_tokens": 50}, 50),
        ({"max_tokens": -1}, {"max_tokens": 50}, 50),
        ({"max_completion_tokens": 99}, {"max_completion_tokens": 50}, 50),
        ({"max_tokens": None, "n_predict": 60}, {"max_tokens": None, "n_predict": 50}, 50),
        ({"max_tokens": 10, "n_predict": 1000}, {"max_tokens": 10, "n_predict": 50}, 50),
    ],
)
def test_answers_are_capped(given: dict[str, Any], sent: dict[str, Any], capped: int | None) -> None:
    request = asked(**given)
    body, told = cap_answer(request, max_tokens=50, n_ctx=100)
    assert {key: value for key, value in body.items() if key != "messages"} == sent
    assert told == capped


def test_without_a_cap_nothing_is_written() -> None:
    request = asked()
    assert cap_answer(request, max_tokens=100, n_ctx=100) == (request.body, None)
    assert cap_answer(request, max_tokens=100, n_ctx=100)[0] is request.body


def test_counts_are_read_from_usage_or_from_timings() -> None:
    assert read_counts(b'"usage": {"completion_tokens": 5, "prompt_tokens":11}') == (11, 5)
    assert read_counts(b'"timings":{"cache_n":8,"prompt_n":3,"predicted_n":2}') == (11, 2)
    assert read_counts(b"nothing") == (None, None)


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# all\nalpha name=alice in_flight=2\n\nbeta # no name\n")
    path.chmod(0o600)
    keys = read_keys(path)
    assert keys[digest("alpha")].name == "alice"
    assert keys[digest("beta")].name == f"key-{digest('beta').hex()[:6]}"
    assert find_key(keys, {b"authorization": b"Bearer alpha"}) is keys[digest("alpha")]
    assert find_key(keys, {b"x-api-key": b"beta"}) is keys[digest("beta")]
    assert find_key(keys, {b"authorization": b"Bearer alphab"}) is None
    assert find_key(keys, {}) is None
    assert find_key({}, {}) is ANYONE


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("a\n", 0o644, "can be read by others than its owner"),
        ("\n# nothing\n", 0o600, "holds no key"),
        ("secret speed=9\n", 0o600, "line 1: write name="),
        ("x\nsecret in_flight=0\n", 0o600, "line 2: in_flight must be a whole number of at least 1"),
        (None, 0, "No such file"),
    ],
)
def test_a_bad_key_file_is_named_and_never_quoted(tmp_path: Path, text: str | None, mode: int, says: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(BadKeyFile, match=says) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


def door(now: list[float], **wishes: Any) -> Door:
    return Door(derive(plan(n_parallel=2), n_keys=0, wishes=Wishes(**wishes)), clock=lambda: now[0])


def test_places_are_given_in_order_and_returned_whatever_happens() -> None:
    async def story() -> None:
        now = [0.0]
        places = door(now, queue=3)
        first, second = [await places.enter("k", 1, key_in_flight=None) for _ in range(2)]
        order: list[str] = []

        async def come(name: str, n: int) -> None:
            ticket = await places.enter("k", n, key_in_flight=None)
            order.append(name)
            places.leave(ticket)

        wide = asyncio.ensure_future(come("wide", 2))
        narrow = asyncio.ensure_future(come("narrow", 1))
        await asyncio.sleep(0)
        assert (places.running, places.waiting) == (2, 3)
        with pytest.raises(Refusal) as full:
            await places.enter("k", 1, key_in_flight=None)
        assert (full.value.status, full.value.retry_after_s) == (429, 1)
        now[0] = 30.0
        places.leave(first)
        await asyncio.sleep(0)
        assert order == []  # the narrow one does not overtake
        places.leave(second)
        await asyncio.gather(wide, narrow)
        assert order == ["wide", "narrow"]
        assert (places.running, places.waiting) == (0, 0)
        assert places.demand_seconds() == {5: 30.0}

    asyncio.run(story())


def test_who_leaves_while_waiting_takes_no_place() -> None:
    async def story() -> None:
        places = door([0.0])
        held = [await places.enter("k", 1, key_in_flight=None) for _ in range(2)]
        waiting = asyncio.ensure_future(places.enter("k", 1, key_in_flight=None))
        also = asyncio.ensure_future(places.enter("k", 1, key_in_flight=None))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        places.leave(held[0])
        also.cancel()  # its turn has come and it has not noticed
        await asyncio.sleep(0)
        places.leave(held[1])
        assert (places.running, places.waiting) == (0, 0)
        # and one whose client leaves in the very moment another is done
        held = [await places.enter("k", 1, key_in_flight=None) for _ in range(2)]
        late = asyncio.ensure_future(places.enter("k", 1, key_in_flight=None))
        await asyncio.sleep(0)
        late.cancel()
        places.leave(held[0])
        places.leave(held[1])
        await asyncio.sleep(0)
        assert (places.running, places.waiting) == (0, 0)
        again = [await places.enter("k", 1, key_in_flight=None) for _ in range(2)]
        assert len(again) == 2

    asyncio.run(story())


def test_a_lowered_limit_holds_back_and_a_restored_one_lets_in() -> None:
    async def story() -> None:
        places = door([0.0])
        places.set_limit(1)
        first = await places.enter("k", 1, key_in_flight=None)
        second = asyncio.ensure_future(places.enter("k", 1, key_in_flight=None))
        await asyncio.sleep(0)
        assert (places.running, places.waiting) == (1, 1)
        places.set_limit(2)
        await second
        assert places.running == 2
        places.leave(first)

    asyncio.run(story())


def test_a_key_has_its_share_and_a_rate_holds() -> None:
    async def story() -> None:
        places = door([0.0], requests_per_s=1)
        await places.enter("k", 1, key_in_flight=1)
        with pytest.raises(Refusal, match="this key has 1 requests in flight of 1"):
            await places.enter("k", 1, key_in_flight=1)
        for n in range(7):  # burst 8 of 2 × (2 slots + 2 waiting)
            places.leave(await places.enter(str(n), 1, key_in_flight=None))
        with pytest.raises(Refusal, match="more than 1 requests a second"):
            await places.enter("x", 1, key_in_flight=None)
        with pytest.raises(Refusal, match="asks for 3 answers at once; there are 2 slots"):
            await places.enter("k", 3, key_in_flight=None)

    asyncio.run(story())


def test_a_strained_host_runs_less_at_once() -> None:
    async def story() -> None:
        house = House({"m": plan()}, Engine(host="127.0.0.1", port=1), keys={})
        served = house.served["m"]
        for _ in range(2):
            house.take_sample(sample(reasons=("hardware thermal slowdown",)))
        assert served.door.limit == 2
        assert served.concurrency.reason == "CUDA0: hardware thermal slowdown"
        for _ in range(20):
            house.take_sample(sample())
        assert served.door.limit == 4
        assert house.gauges()["concurrency_limit"][1] == [((("model", "m"),), 4.0)]

    asyncio.run(story())


class Piecemeal:
    """An answer of the engine in pieces of its own choosing; None is the end of the engine."""

    status = 200
    headers = ((b"content-type", b"text/event-stream"),)

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces = list(pieces)

    async def head(self, _timeout_s: float) -> None:
        return None

    async def piece(self, _timeout_s: float) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece is None:
            raise EngineEnded
        return piece


def passed_back(answer: Piecemeal, *, stuck: bool = False) -> tuple[str, bytes]:
    """(outcome, what the client got)."""
    got: list[bytes] = []

    async def send(message: Any) -> None:
        if stuck and message["type"] == "http.response.body":
            await asyncio.sleep(3600)
        got.append(message.get("body", b""))

    async def story() -> str:
        house = House({"m": plan()}, Engine(host="127.0.0.1", port=1), keys={})
        visit = Visit(request_id="r", began=0.0, path=CHAT, key=ANYONE)
        told: Any = answer
        try:
            return await Relay(house)._pass_back(visit, told, house.served["m"], send, stream=True, capped=None)
        except Refusal as refusal:
            await send({"type": "http.response.body", "body": refusal.event()})
            return refusal.code

    return asyncio.run(story()), b"".join(got)


def test_events_are_passed_whole() -> None:
    torn = Piecemeal(b"data: 1\n\ndata: 2", b"2\n", b"\ndata: [DONE]\n\n")
    assert passed_back(torn) == ("ok", b"data: 1\n\ndata: 22\n\ndata: [DONE]\n\n")
    outcome, got = passed_back(Piecemeal(b"data: 1\n\ndata: {half", None))
    assert outcome == "engine_ended"
    assert got.startswith(b'data: 1\n\ndata: {"error": ')
    assert b"half" not in got


def test_a_client_that_reads_nothing_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantplan.serving.gateway.relay.CLIENT_SILENCE_S", 0.05)
    assert passed_back(Piecemeal(b"data: 1\n\n", b"data: 2\n\n"), stuck=True)[0] == "client_stalled"


def test_histograms_and_suggestions() -> None:
    seconds = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7):
        seconds.observe(value, model='a"b')
    assert list(seconds.lines("t")) == [
        't_bucket{model="a\\"b",le="0.1"} 2', 't_bucket{model="a\\"b",le="1"} 3', 't_bucket{model="a\\"b",le="+Inf"} 4',
        't_sum{model="a\\"b"} 7.65', 't_count{model="a\\"b"} 4',
    ]  # fmt: skip
    metrics = Metrics()
    assert metrics.suggested_n_ctx("m") is None
    for total in [300] * 99 + [3000]:
        metrics.add_tokens(model="m", key="k", n_prompt=total - 10, n_completion=10)
    assert metrics.suggested_n_ctx("m") == 512  # 99 of 100 fit in 300
    metrics.add_tokens(model="m", key="k", n_prompt=3000, n_completion=0)
    assert metrics.suggested_n_ctx("m") == 3072
    assert quantile({1: 5.0, 2: 5.0, 8: 90.0}, 0.95) == 8
    assert quantile({}, 0.5) is None


def test_the_preset_file_has_every_flag_of_each_plan() -> None:
    one = server_settings(plan(model="one"), model=Path("/models/one.gguf"))
    text = preset_file({"one": one}, unified_per_slot=True)
    lines = text.splitlines()
    assert lines[:4] == ["version = 1", "", "[one]", "load-on-startup = false"]
    for line in ("model = /models/one.gguf", "ctx-size = 8192", "parallel = 4", "kv-unified = true",
                 "kv-unified-per-slot = 2048", "fit = off", "no-context-shift = true", "cache-ram = 0"):  # fmt: skip
        assert line in lines
    assert not any(line.split(" = ")[0] in ("host", "port", "alias", "api-key-file") for line in lines)
    with pytest.raises(BadValue):
        preset_file({"a]b": one}, unified_per_slot=True)
    with pytest.raises(BadValue, match="cannot be written"):
        preset_file({"one": server_settings(plan(), model=Path("/a;b.gguf"))}, unified_per_slot=True)


def test_how_many_models_fit_together() -> None:
    def of(size: int) -> Any:
        return plan(margin=(), memory=(device("Host", size, 10),))

    assert most_together({"a": of(2), "b": of(3), "c": of(6)}) == 2
    assert most_together({"a": of(2), "b": of(3), "c": of(5)}) == 3
    assert most_together({"a": of(9), "b": of(9)}) == 1
    with pytest.raises(DoesNotFit):
        most_together({"a": of(2), "b": of(11)})
