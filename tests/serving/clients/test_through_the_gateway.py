"""Both clients through quantplan's own gateway, and against an engine that serves vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from serving.clients.cases import ASKED, FULL, HELLO, LONG, SAID, SLOW
from serving.clients.conftest import Engine
from serving.clients.fault_proxy import Fault, FaultProxy, fault_proxy
from serving.clients.node_driver import NodeDriver, NodeError
from serving.engine import changed, planned_argv, running
from serving.gateway.front_door import FrontDoor, ask, front_door
from serving.tiny_plan import free_port, planned

from quantplan.artifact.store import Artifact
from quantplan.llama.types import Toolchain

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.clients]
KEY = "a-key-of-these-tests"


@pytest.fixture(scope="module")
def door(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    """A gateway with a key, and a queue of none."""
    folder = tmp_path_factory.mktemp("door")
    plans = {"quantplan-tiny": engine.plan}
    with front_door(folder, plans, engine_port=engine.port, keys=f"{KEY} name=tests\n", queue=0) as found:
        yield found


@pytest.fixture(scope="module")
def before(door: FrontDoor) -> Iterator[FaultProxy]:
    with fault_proxy(door.port) as found:
        yield found


def python_client(module: ModuleType, url: str, *, key: str | None = KEY, **changes: Any) -> Any:
    limits = replace(module.LIMITS, **changes)
    return module.Client(base_url=url, api_key=key, limits=limits)


def finished(door: FrontDoor) -> int:
    """Generations that the gateway passed on to their end."""
    text = ask(f"{door.url}/metrics", key=KEY)[2].decode()
    lines = [line for line in text.splitlines() if line.startswith("quantplan_gateway_requests_total{")]
    generated = [line for line in lines if 'outcome="ok"' in line]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in generated)


def test_python(client_module: ModuleType, door: FrontDoor, before: FaultProxy, engine: Engine) -> None:
    log = before.plan(Fault(n_bytes=0, then="reset", long=True))
    began = engine.counts()
    with python_client(client_module, before.url) as client:
        answer = client.chat(HELLO, **FULL)
        assert answer.usage.completion_tokens == 24
        with client.stream_chat(HELLO, **LONG) as pieces:
            next(pieces)
        assert engine.wait_idle() < 1.0
        with pytest.raises(client_module.ContextExceeded):
            client.chat([{"role": "user", "content": "word " * 1200}])
    with python_client(client_module, before.url, key="wrong") as client:
        with pytest.raises(client_module.RequestRefused) as raised:
            client.chat(HELLO, **ASKED)
        assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")
        assert "wrong" not in str(raised.value).split("401: ")[1].replace("missing or wrong", "")
    assert len(log.asked) == 4
    ended = engine.counts()
    assert ended[1] - began[1] == 1


def test_more_than_the_gateway_lets_in_are_refused_and_come_again(
    client_module: ModuleType, door: FrontDoor, engine: Engine
) -> None:
    """Two clients that each think they have both slots; the gateway has a queue of none."""
    retries = replace(client_module.LIMITS.retries, tries=50)
    began, passed = engine.counts(), finished(door)
    clients = [python_client(client_module, door.url, retries=retries) for _ in range(2)]
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda client=client: texts.append(client.chat(HELLO, **SLOW).text))  # type: ignore[misc]
        for client in clients
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert len(texts) == 4
    ended = engine.counts()
    assert (ended[0] - began[0], ended[1] - began[1]) == (4, 4)
    metrics = ask(f"{door.url}/metrics", key=KEY)[2].decode()
    assert 'outcome="rate_limit_exceeded"' in metrics  # it did refuse
    assert finished(door) - passed == 8  # each was counted once, and generated once


def test_typescript(node: NodeDriver, before: FaultProxy, engine: Engine) -> None:
    log = before.plan(Fault(n_bytes=0, then="reset", long=True))
    began = engine.counts()
    told: dict[str, Any] = {"url": before.url, "messages": HELLO, "apiKey": KEY}
    assert node("chat", options=FULL, **told)["usage"]["completionTokens"] == 24
    assert node("left", options=LONG, after=1, how="break", **told)["pieces"] == 1
    assert engine.wait_idle() < 1.0
    assert len(log.asked) == 3
    assert node("chat", options=ASKED, **told)["text"].startswith(SAID)
    with pytest.raises(NodeError) as raised:
        node("chat", options=ASKED, **{**told, "apiKey": "wrong"})
    assert (raised.value.name, raised.value.told["status"]) == ("RequestRefused", 401)
    assert engine.counts()[1] - began[1] == 2


def test_vectors(client_module: ModuleType, node: NodeDriver, tiny: Artifact, toolchain: Toolchain) -> None:
    plan = planned(tiny.model, embeddings=True, n_parallel=1, kv_unified=False)
    port = free_port()
    argv = changed(planned_argv(plan, tiny.model, port, toolchain), {}, ("--pooling", "mean"))  # it knows none itself
    texts = ["one word", "another 日本"]
    with running(argv, port), fault_proxy(port) as proxy:
        with python_client(client_module, proxy.url, embeddings=True) as client:
            one = client.embed(texts)
            with pytest.raises(client_module.NotServed):
                client.chat(HELLO)
            with pytest.raises(client_module.ContextExceeded):
                client.embed(["word " * 1200])
        other = node("embed", url=proxy.url, embeddings=True, texts=texts)
    assert [len(vector) for vector in one] == [len(vector) for vector in other] == [256, 256]
    assert one[0] != one[1]
    for left, right in zip(one, other, strict=True):
        assert left == pytest.approx(right, abs=1e-4)
