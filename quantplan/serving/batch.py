"""Running a batch against a server: as many requests at once as it has slots."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quantplan.errors import ServerUnreachable
from quantplan.serving.batch_file import Journal, Line, line_at
from quantplan.serving.endpoint import Broken, Endpoint, Reply

_TIMEOUT_S = 3600.0
_MAX_WAIT_S = 60.0
AWAY_S = 120.0  # a server that does not answer for so long ends the job; what is done stays


Results = queue.Queue["tuple[int, dict[str, Any], threading.Event] | None"]  # with: it is on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Requests done, of how many, how many of them without an answer."""

    done: int
    of: int
    failed: int


class _GaveUp(Exception):
    pass


def run_batch(
    server: Endpoint,
    journal: Journal,
    *,
    n_parallel: int,
    said: Callable[[Progress], None] | None = None,
    away_s: float = AWAY_S,
) -> None:
    """Sends what the journal lacks and writes each result to it as it comes.

    429 and 503 are waited out. A request whose answer breaks off is recorded as failed and not sent again here.
    Raises ServerUnreachable when the server stays away for `away_s`.
    """
    waiting = journal.todo()
    results: Results = queue.Queue()
    stop, lock = threading.Event(), threading.Lock()
    args = (server, journal, waiting, results, stop, lock, away_s)
    threads = [threading.Thread(target=_work, args=args, daemon=True) for _ in range(n_parallel)]
    for thread in threads:
        thread.start()
    running, failed, total = n_parallel, 0, len(journal.job)
    try:
        while running:
            finished = _all_of(results)
            running -= sum(found is None for found in finished)
            kept = [found for found in finished if found is not None]
            journal.add([(index, told) for index, told, _ in kept])
            for _, _, is_kept in kept:
                is_kept.set()
            failed += sum(told["error"] is not None for _, told, _ in kept)
            if said and kept:
                said(Progress(done=len(journal.done), of=total, failed=failed))
    finally:
        stop.set()
    if len(journal.done) < total:
        raise ServerUnreachable(
            url=server.url, why=f"did not answer for {away_s:.0f} s; {len(journal.done)} of {total} are done"
        )


def _all_of(results: Results) -> list[tuple[int, dict[str, Any], threading.Event] | None]:
    """What has come, at least one: written together, with one sync."""
    found = [results.get()]
    while True:
        try:
            found.append(results.get_nowait())
        except queue.Empty:
            return found


def _work(
    server: Endpoint, journal: Journal, waiting: Iterator[int], results: Results,
    stop: threading.Event, lock: threading.Lock, away_s: float,
) -> None:  # fmt: skip
    try:
        with journal.job.path.open("rb") as file:
            while not stop.is_set():
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return
                line = line_at(journal.job, index, file)
                is_kept = threading.Event()
                results.put((index, _answer(server, line, stop, away_s), is_kept))
                while not is_kept.wait(0.5):  # before the next is begun: a kill loses no more than runs
                    if stop.is_set():
                        return
    except _GaveUp:
        stop.set()
    finally:
        results.put(None)


def _answer(server: Endpoint, line: Line, stop: threading.Event, away_s: float) -> dict[str, Any]:
    """The line of the results file. Raises _GaveUp when the server stays away."""
    deadline: float | None = None
    while True:
        try:
            reply = server.ask("POST", line.url, line.body, timeout_s=_TIMEOUT_S)
        except Broken as broken:
            if broken.started:
                return _failed(line, "broken", str(broken))
            reply = None
        if reply is not None and reply.status not in (429, 503):
            return _answered(line, reply)
        if reply is None or reply.status == 503:
            deadline = deadline or time.monotonic() + away_s
            if time.monotonic() > deadline:
                raise _GaveUp
        else:
            deadline = None
        wait = reply.retry_after_s if reply is not None and reply.retry_after_s else 0.5
        if stop.wait(min(wait, _MAX_WAIT_S)):
            raise _GaveUp


def _answered(line: Line, reply: Reply) -> dict[str, Any]:
    body = reply.json()
    if reply.status == 200 and body is None:
        return _failed(line, "not_json", "the answer is not JSON")
    response = {"status_code": reply.status, "request_id": reply.request_id, "body": body}
    error = None if reply.status < 400 else {"code": str(reply.status), "message": reply.message()}
    return {"id": _id(), "custom_id": line.custom_id, "response": response, "error": error}


def _failed(line: Line, code: str, message: str) -> dict[str, Any]:
    return {"id": _id(), "custom_id": line.custom_id, "response": None, "error": {"code": code, "message": message}}


def _id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"
