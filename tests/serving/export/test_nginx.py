"""nginx as exported: taken by nginx itself, and a real one before a real engine."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from serving.engine import LOAD_S
from serving.export.deployed import deployed, put, running_engine, speed
from serving.export.streams import admitted, at_once, refused, stream
from serving.gateway.front_door import ask
from serving.tiny_plan import free_port
from system_programs import program

from quantplan.artifact.store import Artifact
from quantplan.errors import CannotExport, TargetTooOld
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target
from quantplan.serving.lint.check import lint_paths

pytestmark = [pytest.mark.tools, pytest.mark.build]


def nginx() -> str:
    return program("nginx", package="Debian: nginx-light")


def checked(folder: Path) -> str:
    """nginx -t of the whole configuration: what it says."""
    done = subprocess.run([nginx(), "-t", "-p", str(folder), "-c", str(folder / "nginx.conf")], check=False,
                          capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def front(told: Deployment, folder: Path) -> Iterator[int]:
    """A running nginx as exported, but for the port it listens on."""
    port = free_port()
    put(folder, export("nginx", (told,)))
    conf = folder / f"quantplan-{told.name}.conf"
    text = conf.read_text()
    assert text.count("listen 127.0.0.1:8090;") == 1
    conf.write_text(text.replace("127.0.0.1:8090", f"127.0.0.1:{port}"))
    checked(folder)
    child = subprocess.Popen([nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"])
    try:
        deadline = time.monotonic() + LOAD_S
        while ask(f"http://127.0.0.1:{port}/health")[0] == 0:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        child.terminate()
        child.wait(timeout=20)


@pytest.fixture(scope="module")
def told(tiny: Artifact, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two slots and two that may wait, with the engine running."""
    found = deployed(tiny, tmp_path_factory.mktemp("plan"), target=Target(port=free_port(), n_queue=2))
    with running_engine(found, toolchain):
        yield found


@pytest.fixture(scope="module")
def port(told: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with front(told, tmp_path_factory.mktemp("nginx")) as found:
        yield found


def test_exactly_slots_and_queue_are_admitted_and_stream(port: int) -> None:
    found = at_once(port, [None] * 12)
    inside, outside = admitted(found), refused(found)
    assert (len(inside), len(outside)) == (4, 8)
    for one in inside:
        assert one.body.rstrip().endswith(b"data: [DONE]")
        assert one.n_reads > 50  # passed on as they came, not in a few buffers
    first = min(inside, key=lambda one: one.first_s)
    assert first.first_s < first.all_s / 3
    for one in outside:
        assert one.status == 429
        assert int(one.headers["retry-after"]) >= 1
        assert one.headers["content-type"] == "application/json"
        assert json.loads(one.body)["error"]["type"] == "rate_limit_error"
        assert one.all_s < min(one.all_s for one in inside)
    assert stream(port, n_tokens=4).status == 200  # and the places are free again


def test_one_key_of_several_cannot_take_all_places(told: Deployment, tmp_path: Path) -> None:
    several = replace(told, target=replace(told.target, n_keys=2))
    with front(several, tmp_path) as port:
        found = at_once(port, ["alice"] * 6)
        assert (len(admitted(found)), len(refused(found))) == (2, 4)
        found = at_once(port, ["alice"] * 6 + ["bob"] * 6)
        assert len(admitted(found)) == 4


def test_too_many_a_second_are_told_so(told: Deployment, tmp_path: Path) -> None:
    slow = replace(told, plan=replace(told.plan, decode_tokens_per_s=speed(4)))  # 2 × 8 / 16: one a second
    with front(slow, tmp_path) as port:
        found = [stream(port, n_tokens=1) for _ in range(14)]
    n = len(admitted(found))
    assert 9 <= n <= 11  # a burst of 8, one at the beginning, and what the seconds of the test give
    assert all(one.status == 429 and one.headers["retry-after"] == "8" for one in refused(found))


def test_other_paths_bodies_and_a_missing_engine(port: int, told: Deployment, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port}"
    assert ask(f"{url}/health")[0] == 200
    assert ask(f"{url}/v1/models")[0] == 200
    for path in ("/slots", "/props", "/metrics", "/completion", "/"):
        status, headers, body = ask(f"{url}{path}")
        assert (status, headers["content-type"]) == (404, "application/json")
        assert json.loads(body)["error"]["code"] == "not_found"
    status, _, body = ask(f"{url}/v1/chat/completions", b"x" * ((1 << 20) + 1))
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
    with front(replace(told, target=replace(told.target, port=free_port())), tmp_path) as lonely:
        status, headers, body = ask(f"http://127.0.0.1:{lonely}/v1/chat/completions", {"messages": []})
        assert (status, json.loads(body)["error"]["code"]) == (502, "engine_away")


def test_what_it_says(told: Deployment) -> None:
    exported = export("nginx", (told,))
    text = {file.name: file.text for file in exported.files}[f"quantplan-{told.name}.conf"]
    for directive in (
        "limit_conn_status 429;", "limit_req_status 429;", "proxy_read_timeout 600s;", "proxy_next_upstream off;",
        "proxy_buffering off;", "client_max_body_size 1048576;", f"proxy_pass http://127.0.0.1:{told.target.port};",
    ):  # fmt: skip
        assert directive in text
    assert re.findall(r"limit_conn \S+ (\d+);", text) == ["4"]
    assert "limit_req " not in text
    assert "the plan predicts no speed: there is no limit of requests a second" in exported.notes


def test_a_named_server_has_tls(told: Deployment, tmp_path: Path) -> None:
    named = replace(told, target=replace(told.target, server_name="llm.example.org"))
    exported = export("nginx", (named,))
    text = exported.files[0].text
    assert "listen 443 ssl;" in text and "server_name llm.example.org;" in text
    folder = put(tmp_path, exported)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", folder / "a.key", "-out", folder / "a.crt", "-subj", "/CN=llm.example.org"],
                   check=True, capture_output=True, timeout=30)  # fmt: skip
    conf = folder / exported.files[0].name
    conf.write_text(text.replace(f"/etc/nginx/tls/{told.name}", str(folder / "a")).replace("443", str(free_port())))
    checked(folder)
    bad = replace(told, target=replace(told.target, server_name="a;b"))
    with pytest.raises(CannotExport, match="'a;b' is no host name"):
        export("nginx", (bad,))


def test_lint_and_old_versions(told: Deployment, tmp_path: Path) -> None:
    assert lint_paths([put(tmp_path, export("nginx", (told,)))], plan=told.plan).findings == ()
    with pytest.raises(TargetTooOld, match=r"nginx 1\.2 is too old: limit_conn_status needs 1\.3\.15"):
        export("nginx", (told,), version="1.2")
    assert export("nginx", (told,), version="1.22.1").files
