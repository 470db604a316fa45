"""A batch job: checked before it starts, killed when it hurts, and whole in the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.artifact.store import Artifact
from quantplan.errors import BadJob, ServerUnreachable
from quantplan.places import data_file
from quantplan.serving.batch import run_batch
from quantplan.serving.batch_file import Journal, read_job
from quantplan.serving.endpoint import endpoint, find_model

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[2]


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": custom_id}], "max_tokens": 8, "temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def job_file(folder: Path, lines: list[Any]) -> Path:
    path = folder / "job.jsonl"
    path.write_text("".join((told if isinstance(told, str) else json.dumps(told)) + "\n" for told in lines))
    return path


def results_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(told) for told in path.read_text().splitlines()]


class Server(ThreadingHTTPServer):
    """Answers a chat with its own words, after `seconds`; what it does first is told by `first`."""

    def __init__(self, first: dict[str, list[int]] | None = None, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first, self.seconds = first or {}, seconds
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._tell(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = told["messages"][0]["content"]
        with self.server.lock:
            self.server.seen[words] += 1
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            planned = self.server.first.get(words)
            status = planned.pop(0) if planned else 200
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.at_once -= 1
        if status == 0:
            self.connection.close()
            self.close_connection = True
            return
        self._tell(status, {"echo": words} if status == 200 else {"error": {"message": f"no {status}"}})

    def _tell(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a client that was killed
            super().handle()


@pytest.fixture
def serve() -> Iterator[Any]:
    started: list[Server] = []

    def start(**told: Any) -> Server:
        server = Server(**told)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        (line(""), "has no custom_id"),
        (line("one"), "custom_id 'one' is that of line 1 too"),
        (line("x", method="GET"), "has a method other than POST"),
        (line("x", url="/v1/files"), "has url '/v1/files'"),
        (line("x", body=[]), "has no body"),
        (line("x", body={"stream": True}), "asks for a stream"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_sent(tmp_path: Path, bad: Any, why: str) -> None:
    path = job_file(tmp_path, [line("one"), "", bad])
    with pytest.raises(BadJob) as caught:
        read_job(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert why in str(caught.value)


def test_no_file_and_no_requests(tmp_path: Path) -> None:
    with pytest.raises(BadJob, match="No such file"):
        read_job(tmp_path / "none.jsonl")
    with pytest.raises(BadJob, match="holds no request"):
        read_job(job_file(tmp_path, ["", ""]))


def test_results_are_in_order_and_refusals_are_waited_out(tmp_path: Path, serve: Any) -> None:
    names = [f"q{number}" for number in range(20)]
    server = serve(first={"q3": [429, 429], "q4": [503], "q5": [400], "q6": [0]}, seconds=0.01)
    job, results = read_job(job_file(tmp_path, [line(name) for name in names])), tmp_path / "out.jsonl"
    with Journal(job, results) as journal:
        run_batch(endpoint(url_of(server)), journal, n_parallel=3)
        assert journal.finish() == 2
    told = results_of(results)
    assert [one["custom_id"] for one in told] == names
    assert told[0]["response"]["body"] == {"echo": "q0"}
    assert (told[5]["response"]["status_code"], told[5]["error"]) == (400, {"code": "400", "message": "no 400"})
    assert (told[6]["response"], told[6]["error"]["code"]) == (None, "broken")
    assert server.seen["q3"] == 3
    assert server.seen["q6"] == 1  # it may have been begun: not sent again
    assert server.most_at_once == 3
    assert not (tmp_path / "out.jsonl.partial").exists()
    with Journal(job, results) as again:  # only what has no answer, and the rest stays as it is
        assert again.take_up_failed() == 2
        run_batch(endpoint(url_of(server)), again, n_parallel=3)
        assert again.finish() == 0
    assert [one["custom_id"] for one in results_of(results)] == names
    assert results_of(results)[0] == told[0]
    assert sum(server.seen.values()) == 20 + 3 + 2


def test_a_torn_journal_loses_only_its_torn_line(tmp_path: Path) -> None:
    job, results = read_job(job_file(tmp_path, [line("a"), line("b"), line("c")])), tmp_path / "out.jsonl"
    with Journal(job, results) as journal:
        journal.add([(2, {"custom_id": "c", "error": None})])
        journal.add([(0, {"custom_id": "a", "error": None})])
        whole = journal.path.read_bytes()
        with pytest.raises(BadJob, match="another run"), Journal(job, results):
            pass
    for cut in range(1, len(whole) - 1):
        journal.path.write_bytes(whole[:cut])
        with Journal(job, results) as torn:
            assert set(torn.done) <= {0, 2}
            torn.add([(index, {"custom_id": "abc"[index], "error": None}) for index in torn.todo()])
            assert torn.finish() == 0
        assert [one["custom_id"] for one in results_of(results)] == ["a", "b", "c"]


def test_the_journal_of_another_job_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "out.jsonl"
    with Journal(read_job(job_file(tmp_path, [line("a")])), results) as journal:
        path = journal.path
    with (
        pytest.raises(BadJob, match="journal of another job"),
        Journal(read_job(job_file(tmp_path, [line("b")])), results),
    ):
        pass
    assert path.exists()


def test_a_server_that_stays_away_ends_the_job_and_keeps_what_is_done(tmp_path: Path, serve: Any) -> None:
    server = serve()
    url = url_of(server)
    job, results = read_job(job_file(tmp_path, [line("a"), line("b")])), tmp_path / "out.jsonl"
    server.shutdown()
    server.server_close()
    with Journal(job, results) as journal, pytest.raises(ServerUnreachable, match="0 of 2 are done"):
        run_batch(endpoint(url), journal, n_parallel=2, away_s=0.2)
    with pytest.raises(ServerUnreachable, match="does not answer"):
        find_model(endpoint(url))
    assert not results.exists()


def start_batch(job: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "quantplan", "batch", str(job), *more], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_killed_again_and_again_it_ends_whole(tmp_path: Path, serve: Any) -> None:
    """kill -9 at four moments: no line is lost, none is there twice, and only what was on its way is sent again."""
    server = serve(seconds=0.02)
    names = [f"q{number}" for number in range(120)]
    path, results = job_file(tmp_path, [line(name) for name in names]), tmp_path / "job.results.jsonl"
    journal = results.with_name(results.name + ".partial")
    for enough in (5, 30, 60, 90):
        child = start_batch(path, "--url", url_of(server), "--parallel", "4")
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < enough:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not results.exists()
    child = start_batch(path, "--url", url_of(server), "--parallel", "4", "--json")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    schema = json.loads(data_file("schemas", "batch-1.schema.json").read_text())
    jsonschema.validate(json.loads(out), schema)
    assert json.loads(out)["data"] == {"job": str(path), "results": str(results), "requests": 120, "failed": 0}
    assert "are done already" in err
    assert [one["custom_id"] for one in results_of(results)] == names
    assert all(one["response"]["body"]["echo"] == one["custom_id"] for one in results_of(results))
    assert max(server.seen.values()) <= 5
    assert sum(server.seen.values()) <= 120 + 4 * 4  # of each kill at most the four on their way
    again = start_batch(path, "--url", url_of(server))
    _, err = again.communicate(timeout=60)
    assert (again.returncode, err.splitlines()[0]) == (2, f"Error: {results}: is there already: the job is done")


@pytest.mark.tools
@pytest.mark.build
def test_a_job_on_an_artifact(tiny: Artifact, tmp_path: Path) -> None:
    path = job_file(tmp_path, [line(f"what is {number} plus 1?") for number in range(12)])
    child = start_batch(path, "--artifact", str(tiny.folder), "--output", str(tmp_path / "out.jsonl"))
    out, err = child.communicate(timeout=200)
    assert child.returncode == 0, err
    assert out == f"{tmp_path / 'out.jsonl'}: 12 results, 0 without an answer\n"
    told = results_of(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in told] == [f"what is {number} plus 1?" for number in range(12)]
    assert all(one["response"]["body"]["choices"][0]["message"]["content"] for one in told)


@pytest.mark.parametrize(
    ("more", "error", "hint"),
    [
        ((), "Error: name either --artifact or --url", "Hint: quantplan batch --help"),
        (
            ("--url", "http://127.0.0.1:1"),
            "Error: http://127.0.0.1:1: does not answer (Connection refused)",
            "Hint: check the address",
        ),
        (("--url", "ftp://x"), "Error: URL 'ftp://x' is not http://HOST:PORT", "Hint: "),
    ],
)
def test_what_is_refused_says_what_to_do(tmp_path: Path, more: tuple[str, ...], error: str, hint: str) -> None:
    child = start_batch(job_file(tmp_path, [line("a")]), *more)
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert out == ""
    assert err.splitlines()[0] == error
    assert err.splitlines()[1].startswith(hint)
