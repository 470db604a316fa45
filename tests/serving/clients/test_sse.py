"""Server-sent events in pieces of any size: both parsers against the standard's rules, written down once more."""

from __future__ import annotations

import base64
import random
import re
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.clients.node_driver import NodeDriver

WORDS = ("data", "data: ", "data:", ": ping", ":", "event: error", "event:x", "id: 7", "retry: 1", "data:  two", "",
         "\ufeff", "é日🙂", "datum: x", " data: x", "data: {\"a\": 1}", "data: a:b")  # fmt: skip
ENDS = ("\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n")


def by_the_standard(text: str) -> list[tuple[str, str]]:
    """(name, data) of every event of a whole stream: HTML standard, 9.2.6."""
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    events, data, name = [], [], ""
    for line in lines[:-1]:  # the rest has no end
        if line == "":
            if data:
                events.append((name or "message", "\n".join(data)))
            data, name = [], ""
        elif not line.startswith(":"):
            word, _, value = line.partition(":")
            value = value[1:] if value.startswith(" ") else value
            if word == "data":
                data.append(value)
            elif word == "event":
                name = value
    return events


@pytest.fixture(scope="module")
def sse() -> ModuleType:
    from quantplan.serving.clients.python import sse

    return sse


def parsed(parser: Any, raw: bytes, cuts: list[int]) -> list[tuple[str, str]]:
    found = [event for start, end in pairwise([0, *cuts, len(raw)]) for event in parser.feed(raw[start:end])]
    return [(event.name, event.data) for event in found]


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(ENDS), st.text(max_size=5)), max_size=20),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_any_cuts_give_the_same_events(sse: ModuleType, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts).encode("utf-8", "replace").decode()
    raw = text.encode()
    places = sorted(min(cut, len(raw)) for cut in cuts)
    assert parsed(sse.SseParser(), raw, places) == by_the_standard(text)


def test_bytes_one_by_one(sse: ModuleType) -> None:
    text = ": hi\r\ndata: é\r\ndata: 🙂\r\n\r\nevent: error\ndata: {}\n\ndata: cut"
    assert parsed(sse.SseParser(), text.encode(), list(range(len(text.encode())))) == by_the_standard(text) == [
        ("message", "é\n🙂"), ("error", "{}")
    ]  # fmt: skip


def test_what_is_no_stream_is_refused(sse: ModuleType) -> None:
    from quantplan.serving.clients.python.errors import BadAnswer

    for raw in (b"data: \xff\n\n", b"data: " + b"x" * sse.MAX_LINE_BYTES):
        parser = sse.SseParser()
        with pytest.raises(BadAnswer):
            parser.feed(raw)
    parser = sse.SseParser()
    assert parser.feed(b"data: \xc3") == []  # its other half may still come
    with pytest.raises(BadAnswer):
        parser.feed(b"\n\n")
    parser = sse.SseParser()
    with pytest.raises(BadAnswer, match="an event"):
        for _ in range(10):
            parser.feed(b"data: " + b"x" * (sse.MAX_LINE_BYTES // 8) + b"\n")


def test_nothing_has_begun_while_there_are_comments_only(sse: ModuleType) -> None:
    parser = sse.SseParser()
    for raw, idle in ((b"", True), (b": pi", True), (b"ng\n\n", True), (b"id: 3\n", True), (b"da", False)):
        parser.feed(raw)
        assert parser.idle is idle, raw


@pytest.mark.clients
def test_typescript_reads_the_same(node: NodeDriver) -> None:
    chance = random.Random(10)
    texts, cases = [], []
    for _ in range(1000):
        text = "".join(chance.choice((*WORDS, *ENDS, *ENDS)) for _ in range(chance.randrange(20)))
        raw = text.encode()
        cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(chance.randrange(12)))
        texts.append(text)
        cases.append({"bytes": base64.b64encode(raw).decode(), "cuts": cuts})
    told = node("sse", url="", cases=cases)
    assert [[(event["name"], event["data"]) for event in events] for events in told] == list(
        map(by_the_standard, texts)
    )
    assert sum(map(len, told)) > 500
    bad = [b"data: \xff\n\n", b"data: " + b"x" * (5 << 20), b"data: \xc3\n\n"]
    cases = [{"bytes": base64.b64encode(raw).decode(), "cuts": [8]} for raw in bad]
    assert node("sse", url="", cases=cases) == ["BadAnswer"] * 3
