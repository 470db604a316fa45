"""The generated Python client against llama-server with a network between that fails in every way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from serving.clients.cases import AGAIN, ASKED, FULL, HELLO, LONG, NEVER, QUICK, SAID, UNUSUAL, reached
from serving.clients.conftest import Engine
from serving.clients.fault_proxy import STREAM_HEAD, Fault, FaultProxy, chunk, fault_proxy, status, token
from serving.tiny_plan import free_port

pytestmark = [pytest.mark.tools, pytest.mark.build]


@pytest.fixture
def make(client_module: ModuleType, proxy: FaultProxy) -> Iterator[Callable[..., Any]]:
    """A client of the proxy with short timeouts and waits."""
    made = []

    def client(url: str | None = None, **changes: Any) -> Any:
        limits = client_module.LIMITS
        timeouts = replace(limits.timeouts, **{**QUICK, **changes})
        quick = replace(limits, timeouts=timeouts, retries=replace(limits.retries, base_s=0.02, cap_s=0.1))
        made.append(client_module.Client(base_url=url or proxy.url, limits=quick))
        return made[-1]

    yield client
    for one in made:
        one.close()


@pytest.fixture
def counted(engine: Engine) -> Callable[[], tuple[int, int]]:
    """(generations begun, finished) on the engine since the test began."""
    before = engine.counts()

    def since() -> tuple[int, int]:
        now = engine.counts()
        return now[0] - before[0], now[1] - before[1]

    return since


def test_it_answers_streams_and_counts(make: Any, proxy: FaultProxy, counted: Any) -> None:
    log = proxy.plan()
    client = make(first_token_s=10)
    answer = client.chat(HELLO, **ASKED)
    assert answer.text.startswith(SAID)
    assert answer.usage.prompt_tokens == client.count_chat(HELLO) == 9
    assert answer.usage.completion_tokens <= 24
    with client.stream_chat(HELLO, **ASKED) as pieces:
        texts = [piece.text for piece in pieces]
    assert "".join(texts) == answer.text
    assert len([text for text in texts if text]) > 3
    done = client.complete("The next day ", **ASKED)
    assert done.text
    assert done.finish_reason in ("stop", "length")
    assert client.count_text("The next day ") == done.usage.prompt_tokens
    assert (log.n_finished, counted()) == (3, (3, 3))


@pytest.mark.parametrize(
    "faults",
    AGAIN,
)
def test_what_failed_before_the_first_token_is_sent_again_and_generated_once(
    make: Any, proxy: FaultProxy, counted: Any, faults: list[Fault]
) -> None:
    """Those that reached the engine are cancelled there, in the middle of an answer that the proxy made long."""
    log = proxy.plan(*faults)
    began = time.monotonic()
    answer = make(first_token_s=10, total_s=20).chat(HELLO, **FULL)
    assert answer.usage.completion_tokens == 24
    assert len(log.asked) == len(faults) + 1
    assert (log.n_forwarded, log.n_finished) == counted() == (1 + reached(faults), 1)
    if faults[0].raw is not None and b"Retry-After" in faults[0].raw:
        assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    ("fault", "error"),
    NEVER,
)
def test_what_may_have_begun_is_never_sent_again(
    make: Any, client_module: ModuleType, proxy: FaultProxy, counted: Any, fault: Fault, error: str
) -> None:
    log = proxy.plan(fault)
    began = time.monotonic()
    with pytest.raises(getattr(client_module, error)) as raised:
        make().chat(HELLO, **ASKED)
    assert time.monotonic() - began < QUICK["total_s"] + 0.5
    assert len(log.asked) == 1
    assert counted()[0] <= 1
    if b'"a"' in (fault.raw or b""):
        assert raised.value.partial == "a"


def test_half_a_character_at_the_cut(make: Any, client_module: ModuleType, proxy: FaultProxy) -> None:
    body = token("a") + token("é")
    cut = body[: body.index("é".encode()) + 1]
    log = proxy.plan(Fault(raw=STREAM_HEAD + chunk(cut), then="reset"))
    with pytest.raises(client_module.Interrupted) as raised:
        make().chat(HELLO, **ASKED)
    assert (raised.value.partial, len(log.asked)) == ("a", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_characters_split_over_pieces_come_whole(make: Any, proxy: FaultProxy, counted: Any, size: int) -> None:
    """The engine's own answer, byte by byte, each a packet; what it says is ordered by a grammar."""
    proxy.plan(Fault(piece_bytes=size))
    answer = make(first_token_s=10, between_tokens_s=10, total_s=20).chat(
        HELLO, max_tokens=64, extra={"grammar": f'root ::= "{UNUSUAL}"'}
    )
    assert answer.text.strip() == UNUSUAL
    assert counted() == (1, 1)


def test_refused_connections_are_tried_again_until_somebody_listens(
    make: Any, client_module: ModuleType, engine: Engine, counted: Any
) -> None:
    port = free_port()
    client = make(f"http://127.0.0.1:{port}")
    with pytest.raises(client_module.Unreachable) as raised:
        client.chat(HELLO, **ASKED)
    assert raised.value.tries == 5
    slow = replace(client.limits, retries=replace(client.limits.retries, base_s=0.5, cap_s=0.5, tries=50))
    with client_module.Client(base_url=f"http://127.0.0.1:{port}", limits=slow) as patient:
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(patient.chat(HELLO, **ASKED)))
        asking.start()
        time.sleep(0.3)
        with fault_proxy(engine.port, port=port) as late:
            asking.join(10)
            assert found[0].text.startswith(SAID)
            assert len(late.log.asked) == 1
    assert counted() == (1, 1)


def test_an_address_nobody_answers_at_times_out(make: Any, client_module: ModuleType) -> None:
    """A listener whose backlog is full drops what comes: as a firewall does."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        began = time.monotonic()
        with pytest.raises(client_module.TimedOut) as raised:
            make(url, connect_s=0.2, total_s=1.0).chat(HELLO, **ASKED)
        assert time.monotonic() - began < 1.5
        assert raised.value.phase in ("connect", "total")
        for filler in fillers:
            filler.close()


def test_what_does_not_fit_is_not_sent(
    make: Any, client_module: ModuleType, proxy: FaultProxy, engine: Engine, counted: Any
) -> None:
    log = proxy.plan()
    client = make(first_token_s=10)
    long = [{"role": "user", "content": "word " * 1200}]
    with pytest.raises(client_module.ContextExceeded) as raised:
        client.chat(long)
    assert raised.value.n_prompt_tokens == client.count_chat(long) > 1024
    assert raised.value.n_ctx == engine.plan.n_ctx_per_slot == 1024
    with pytest.raises(client_module.ContextExceeded) as raised:
        client.chat(HELLO, max_tokens=1020)
    assert (raised.value.n_prompt_tokens, raised.value.max_tokens) == (9, 1020)
    with pytest.raises(client_module.AnswerTooLong):
        client.chat(HELLO, max_tokens=1025)
    with pytest.raises(client_module.ContextExceeded):
        client.complete("word " * 1200)
    assert (log.asked, counted()) == ([], (0, 0))
    full = client.chat(HELLO, max_tokens=1015, extra={"ignore_eos": True})
    assert full.usage.prompt_tokens + full.usage.completion_tokens == 1024


def test_the_servers_own_refusal_says_the_same(make: Any, client_module: ModuleType, engine: Engine) -> None:
    """Where counting is impossible the engine refuses, with the same error."""
    with fault_proxy(engine.port) as blind:
        blind_client = make(blind.url, first_token_s=10)
        refused = status(404)
        original = blind._answer

        async def answer(head: bytes, body: bytes, fault: Fault, *, counted: bool) -> Any:
            if not counted:
                yield refused
                return
            async for piece in original(head, body, fault, counted=counted):
                yield piece

        blind._answer = answer  # type: ignore[method-assign]
        assert blind_client.count_chat(HELLO) is None
        with pytest.raises(client_module.ContextExceeded) as raised:
            blind_client.chat([{"role": "user", "content": "word " * 1200}])
        assert raised.value.n_prompt_tokens > 1024
        assert raised.value.n_ctx == 1024
        assert blind_client.chat(HELLO, **ASKED).text.startswith(SAID)


def test_leaving_a_stream_frees_the_slot(make: Any, engine: Engine, counted: Any) -> None:
    client = make(engine.url, first_token_s=10)
    with client.stream_chat(HELLO, **LONG) as pieces:
        next(pieces)
    assert engine.wait_idle() < 1.0
    assert counted() == (1, 0)
    assert client.chat(HELLO, **ASKED).text.startswith(SAID)


def test_a_stream_is_closed_from_another_thread(
    make: Any, client_module: ModuleType, proxy: FaultProxy, engine: Engine
) -> None:
    proxy.plan(Fault(until=b'content":"H"', then="hold"))
    client = make(first_token_s=10, between_tokens_s=10, total_s=20)
    began = time.monotonic()
    with client.stream_chat(HELLO, **LONG) as pieces:
        threading.Timer(0.3, pieces.close).start()
        with pytest.raises(client_module.Closed):
            list(pieces)
    assert time.monotonic() - began < 2
    engine.wait_idle()
    proxy.plan(Fault(n_bytes=0, then="hold"))
    threading.Timer(0.3, client.close).start()
    with pytest.raises(client_module.Closed):
        client.chat(HELLO, **LONG)
    with pytest.raises(client_module.Closed):
        client.chat(HELLO)


def test_no_more_run_at_once_than_there_are_slots(make: Any, proxy: FaultProxy, counted: Any) -> None:
    log = proxy.plan(*[Fault(piece_bytes=400, pause_s=0.005)] * 6)
    client = make(first_token_s=10, between_tokens_s=10, total_s=20)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(client.chat(HELLO, **ASKED).text)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert log.most_at_once == 2
    assert counted() == (6, 6)


def test_the_total_bounds_waiting_for_a_place(make: Any, client_module: ModuleType, proxy: FaultProxy) -> None:
    proxy.plan(*[Fault(n_bytes=0, then="hold")] * 2)
    client = make(first_token_s=3, total_s=1.0)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            client.chat(HELLO, **ASKED)
        except client_module.ClientError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2
    assert [error.phase for error in errors] == ["total"] * 3  # type: ignore[attr-defined]


def test_the_async_client_does_the_same(
    client_module: ModuleType, proxy: FaultProxy, engine: Engine, counted: Any
) -> None:
    log = proxy.plan(Fault(n_bytes=0, then="reset", long=True))

    async def main() -> None:
        async with client_module.AsyncClient(base_url=f"{proxy.url}/v1/") as client:
            answers = await asyncio.gather(*(client.chat(HELLO, **ASKED) for _ in range(4)))
            assert len({answer.text for answer in answers}) == 1
            async with client.stream_chat(HELLO, **LONG) as pieces:
                async for _ in pieces:
                    break
            proxy.faults = [Fault(n_bytes=0, then="hold")]
            task = asyncio.ensure_future(client.chat(HELLO, **LONG))
            while len(log.asked) < 7:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert len(log.asked) == 7
    assert counted()[1] == 4


def test_a_stream_outlives_its_client_quietly(make: Any, client_module: ModuleType, proxy: FaultProxy) -> None:
    proxy.plan()
    client = make(first_token_s=10)
    with client.stream_chat(HELLO, **LONG) as pieces:
        next(pieces)
        client.close()
        with pytest.raises(client_module.Closed):
            next(pieces)
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "quantplan-client"]


def test_wrong_arguments_are_no_client_errors(client_module: ModuleType) -> None:
    for url in ("ftp://x", "http://me:secret@x", "nonsense"):
        with pytest.raises(ValueError, match="base URL"):
            client_module.Client(base_url=url)
    assert not [thread for thread in threading.enumerate() if thread.name == "quantplan-client"]
    with pytest.raises(ValueError, match="printable"):
        client_module.Client(api_key="a\nb")
    with client_module.Client() as client:
        with pytest.raises(TypeError, match="unknown options: maxtokens"):
            client.chat(HELLO, maxtokens=3)
        with pytest.raises(ValueError, match="extra may not set n, stream"):
            client.stream_chat(HELLO, extra={"n": 2, "stream": False})
        with pytest.raises(client_module.NotServed):
            client.embed(["a"])
