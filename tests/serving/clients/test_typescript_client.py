"""The generated TypeScript client, on Node, against llama-server with a network between that fails in every way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving.clients.cases import AGAIN, ASKED, FULL, HELLO, LONG, NEVER, QUICK, SAID, UNUSUAL, reached
from serving.clients.conftest import Engine
from serving.clients.fault_proxy import STREAM_HEAD, Fault, FaultProxy, chunk, fault_proxy, status, token
from serving.clients.node_driver import NodeDriver, NodeError, compile_strictly
from serving.tiny_plan import free_port

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.clients]

NAMES = {"countMs": "count_s", "firstTokenMs": "first_token_s", "betweenTokensMs": "between_tokens_s",
         "totalMs": "total_s"}  # fmt: skip
MS = {name: round(1000 * QUICK[seconds]) for name, seconds in NAMES.items()}
RETRIES = {"baseMs": 20, "capMs": 100}
PATIENT = {"timeouts": {**MS, "firstTokenMs": 10_000, "betweenTokensMs": 10_000, "totalMs": 20_000}, "retries": RETRIES}


@pytest.fixture
def counted(engine: Engine) -> Callable[[], tuple[int, int]]:
    """(generations begun, finished) on the engine since the test began."""
    before = engine.counts()

    def since() -> tuple[int, int]:
        now = engine.counts()
        return now[0] - before[0], now[1] - before[1]

    return since


def test_it_is_strictly_typed_without_node_too(typescript: Path) -> None:
    """In a browser there are no types of Node; and a wrong use is an error of tsc."""
    done = compile_strictly(typescript, ["quantplan-client.ts"], types=[])
    assert done.returncode == 0, done.stdout
    wrong = typescript / "wrong.ts"
    wrong.write_text(
        'import { Client } from "./quantplan-client.js";\nconst client = new Client();\n'
        'await client.chat([{ role: "robot", content: "a" }]);\nawait client.chat([], { maxtokens: 3 });\n'
        "const text: number = (await client.complete('a')).text;\nconsole.log(text);\n"
    )
    done = compile_strictly(typescript, ["wrong.ts"], types=["node"])
    assert re.findall(r"wrong\.ts\((\d+),", done.stdout) == ["3", "4", "5"], done.stdout


def test_it_imports_nothing(typescript: Path) -> None:
    text = (typescript / "quantplan-client.ts").read_text(encoding="utf-8")
    assert "import " not in text
    assert "require(" not in text


def test_it_answers_streams_and_counts(node: NodeDriver, proxy: FaultProxy, counted: Any) -> None:
    log = proxy.plan()
    told: dict[str, Any] = {"url": proxy.url, "messages": HELLO, "options": ASKED, **PATIENT}
    answer = node("chat", **told)
    assert answer["text"].startswith(SAID)
    assert answer["usage"]["promptTokens"] == node("countChat", **told) == 9
    streamed = node("left", after=1000, how="break", **told)
    assert streamed["text"] == answer["text"]
    assert streamed["pieces"] > 3
    done = node("complete", prompt="The next day ", **told)
    assert done["finishReason"] in ("stop", "length")
    assert node("countText", prompt="The next day ", **told) == done["usage"]["promptTokens"]
    assert (log.n_finished, counted()) == (3, (3, 3))


@pytest.mark.parametrize("faults", AGAIN)
def test_what_failed_before_the_first_token_is_sent_again_and_generated_once(
    node: NodeDriver, proxy: FaultProxy, counted: Any, faults: list[Fault]
) -> None:
    log = proxy.plan(*faults)
    answer = node("chat", url=proxy.url, messages=HELLO, options=FULL, **PATIENT)
    assert answer["usage"]["completionTokens"] == 24
    assert len(log.asked) == len(faults) + 1
    assert (log.n_forwarded, log.n_finished) == counted() == (1 + reached(faults), 1)
    if faults[0].raw is not None and b"Retry-After" in faults[0].raw:
        assert node.seconds >= 1.0


# Node takes a reset for a proper end where the answer says "Connection: close": an empty one is tried again
@pytest.mark.parametrize(("fault", "error"), [case for case in NEVER if case.id != "nothing at all"])
def test_what_may_have_begun_is_never_sent_again(
    node: NodeDriver, proxy: FaultProxy, counted: Any, fault: Fault, error: str
) -> None:
    log = proxy.plan(fault)
    with pytest.raises(NodeError) as raised:
        node("chat", url=proxy.url, messages=HELLO, options=ASKED, timeouts=MS, retries=RETRIES)
    assert raised.value.name == error, raised.value.told
    assert raised.value.seconds < QUICK["total_s"] + 0.5
    assert len(log.asked) == 1
    assert counted()[0] <= 1
    if b'"a"' in (fault.raw or b""):
        assert raised.value.told["partial"] == "a"


def test_half_a_character_at_the_cut(node: NodeDriver, proxy: FaultProxy) -> None:
    body = token("a") + token("é")
    log = proxy.plan(Fault(raw=STREAM_HEAD + chunk(body[: body.index("é".encode()) + 1]), then="reset"))
    with pytest.raises(NodeError) as raised:
        node("chat", url=proxy.url, messages=HELLO, options=ASKED, **PATIENT)
    assert (raised.value.name, raised.value.told["partial"], len(log.asked)) == ("Interrupted", "a", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_characters_split_over_pieces_come_whole(node: NodeDriver, proxy: FaultProxy, counted: Any, size: int) -> None:
    proxy.plan(Fault(piece_bytes=size))
    options = {"max_tokens": 64, "extra": {"grammar": f'root ::= "{UNUSUAL}"'}}
    assert node("chat", url=proxy.url, messages=HELLO, options=options, **PATIENT)["text"].strip() == UNUSUAL
    assert counted() == (1, 1)


def test_refused_connections_are_tried_again_until_somebody_listens(
    node: NodeDriver, engine: Engine, counted: Any
) -> None:
    port = free_port()
    told: dict[str, Any] = {"url": f"http://127.0.0.1:{port}", "messages": HELLO, "options": ASKED, **PATIENT}
    with pytest.raises(NodeError) as raised:
        node("chat", **told)
    assert (raised.value.name, raised.value.told["tries"]) == ("Unreachable", 5)
    found: list[Any] = []
    slow = {**told, "retries": {"baseMs": 500, "capMs": 500, "tries": 50}}
    asking = threading.Thread(target=lambda: found.append(node("chat", **slow)))
    asking.start()
    time.sleep(0.3)
    with fault_proxy(engine.port, port=port) as late:
        asking.join(10)
        assert found[0]["text"].startswith(SAID)
        assert len(late.log.asked) == 1
    assert counted() == (1, 1)


def test_what_does_not_fit_is_not_sent(node: NodeDriver, proxy: FaultProxy, engine: Engine, counted: Any) -> None:
    log = proxy.plan()
    told: dict[str, Any] = {"url": proxy.url, **PATIENT}
    long = [{"role": "user", "content": "word " * 1200}]
    for options, messages, numbers in (
        ({}, long, {"promptTokens": node("countChat", messages=long, **told), "nCtx": engine.plan.n_ctx_per_slot}),
        ({"max_tokens": 1020}, HELLO, {"promptTokens": 9, "maxTokens": 1020, "nCtx": 1024}),
    ):
        with pytest.raises(NodeError) as raised:
            node("chat", messages=messages, options=options, **told)
        assert raised.value.name == "ContextExceeded"
        assert numbers.items() <= raised.value.told.items()
    with pytest.raises(NodeError, match="AnswerTooLong"):
        node("chat", messages=HELLO, options={"max_tokens": 1025}, **told)
    assert (log.asked, counted()) == ([], (0, 0))


@pytest.mark.parametrize("how", ["break", "abort", "signal"])
def test_aborting_a_stream_frees_the_slot(node: NodeDriver, engine: Engine, counted: Any, how: str) -> None:
    told = node("left", url=engine.url, messages=HELLO, options=LONG, after=1, how=how, **PATIENT)
    assert told["ended"] == (None if how == "break" else "Aborted")
    assert engine.wait_idle() < 1.0
    assert counted() == (1, 0)


def test_aborting_before_the_first_token_and_while_it_waits(
    node: NodeDriver, proxy: FaultProxy, engine: Engine
) -> None:
    for faults in ([Fault(n_bytes=0, then="hold")], [Fault(raw=status(429, headers=b"Retry-After: 9\r\n"))]):
        log = proxy.plan(*faults)
        told = node("left", url=proxy.url, messages=HELLO, options=LONG, after=300, how="timer", **PATIENT)
        assert told == {"ended": "Aborted", "pieces": 0}
        assert node.seconds < 2
        assert len(log.asked) == 1
    assert engine.wait_idle() < 1.0


def test_no_more_run_at_once_than_there_are_slots(node: NodeDriver, proxy: FaultProxy, counted: Any) -> None:
    log = proxy.plan(*[Fault(piece_bytes=400, pause_s=0.005)] * 6)
    texts = node("parallel", count=6, url=proxy.url, messages=HELLO, options=ASKED, **PATIENT)
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert log.most_at_once == 2
    assert counted() == (6, 6)


def test_waits_and_dates(node: NodeDriver) -> None:
    assert node("waits") == [499.5, 2000, 2000, None, None, 7000, 9000, None, None, None]


def test_wrong_arguments_are_no_client_errors(node: NodeDriver) -> None:
    told: dict[str, Any] = {"messages": HELLO, "options": {}}
    for url in ("ftp://x", "http://me:secret@x", "nonsense"):
        with pytest.raises(NodeError, match="TypeError"):
            node("chat", url=url, **told)
    with pytest.raises(NodeError, match="TypeError"):
        node("chat", url="http://x", apiKey="a\nb", **told)
    with pytest.raises(NodeError, match="extra may not set n, stream"):
        node("chat", url="http://x", messages=HELLO, options={"extra": {"n": 2, "stream": False}})
    with pytest.raises(NodeError, match="NotServed"):
        node("embed", url="http://x", texts=["a"])
