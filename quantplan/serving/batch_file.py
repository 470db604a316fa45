"""A batch of requests as a file of JSON lines, and the journal of what is done: kill it when you like, start it again.

The journal (`<results>.partial`) begins with the job's hash; then one line a finished request, in the order they
finished, synced before it counts. A torn last line is dropped. The results file appears whole, in the job's order.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from quantplan.errors import BadJob

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_JOURNAL = "quantplan/batch-journal/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked file: where each request's line begins, and the hash of it all."""

    path: Path
    offsets: tuple[int, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_job(path: Path) -> Job:
    """The file, every line checked before anything is sent. Raises BadJob with the first bad line's number."""
    digest, offsets = hashlib.sha256(), []
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            at = 0
            for number, raw in enumerate(file, 1):
                digest.update(raw)
                if raw.strip():
                    line = parse_line(raw, path=path, number=number)
                    if line.custom_id in seen:
                        why = f"custom_id {line.custom_id!r} is that of line {seen[line.custom_id]} too"
                        raise BadJob(path=path, line=number, why=why)
                    seen[line.custom_id] = number
                    offsets.append(at)
                at += len(raw)
    except OSError as error:
        raise BadJob(path=path, line=None, why=error.strerror or "cannot be read") from None
    if not offsets:
        raise BadJob(path=path, line=None, why="holds no request")
    return Job(path=path, offsets=tuple(offsets), sha256=digest.hexdigest())


def parse_line(raw: bytes, *, path: Path, number: int) -> Line:
    """One line of OpenAI's batch format. Raises BadJob."""

    def bad(why: str) -> BadJob:
        return BadJob(path=path, line=number, why=why)

    try:
        told = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise bad(f"is not JSON ({error})") from None
    if not isinstance(told, dict):
        raise bad("is not a JSON object")
    custom_id, body = told.get("custom_id"), told.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise bad("has no custom_id")
    if told.get("method", "POST") != "POST":
        raise bad("has a method other than POST")
    if told.get("url") not in URLS:
        raise bad(f"has url {told.get('url')!r}; possible are {', '.join(URLS)}")
    if not isinstance(body, dict):
        raise bad("has no body")
    if body.get("stream"):
        raise bad("asks for a stream; a batch has whole answers")
    return Line(custom_id=custom_id, url=told["url"], body=body)


def line_at(job: Job, index: int, file: IO[bytes]) -> Line:
    """The request of that place in the job."""
    file.seek(job.offsets[index])
    return parse_line(file.readline(), path=job.path, number=index + 1)


class Journal:
    """What is done of a job. One process at a time: a second is refused."""

    def __init__(self, job: Job, results: Path) -> None:
        self.job, self.results = job, results
        self.path = results.with_name(results.name + ".partial")
        self.done: dict[int, int] = {}  # index -> where its line begins
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise BadJob(path=self.path, line=None, why=error.strerror or "cannot be written") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except OSError:
            self._file.close()
            raise BadJob(path=self.path, line=None, why="is being written by another run of this job") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def _read(self) -> None:
        assert self._file is not None
        file = self._file
        file.seek(0)
        head = file.readline()
        if not head.endswith(b"\n"):  # new, or torn in its first line
            file.truncate(0)
            self._append({"schema": _JOURNAL, "job_sha256": self.job.sha256})
            return
        if _told(head).get("job_sha256") != self.job.sha256:
            raise BadJob(path=self.path, line=1, why="is the journal of another job, or the job has changed since")
        at = len(head)
        for raw in file:
            index = _told(raw).get("index") if raw.endswith(b"\n") else None
            if not isinstance(index, int):
                break
            self.done.setdefault(index, at)
            at += len(raw)
        file.truncate(at)

    def add(self, finished: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Finished requests, on the disk when this returns."""
        lines = []
        for index, told in finished:
            assert index not in self.done
            lines.append({"index": index, "result": told})
        for (index, _), at in zip(finished, self._append(*lines), strict=True):
            self.done[index] = at

    def _append(self, *lines: dict[str, Any]) -> list[int]:
        """Where each begins; synced once for all."""
        assert self._file is not None
        self._file.seek(0, os.SEEK_END)
        at, begins, raw = self._file.tell(), [], []
        for told in lines:
            begins.append(at)
            raw.append(json.dumps(told, separators=(",", ":")).encode() + b"\n")
            at += len(raw[-1])
        self._file.write(b"".join(raw))
        self._file.flush()
        os.fsync(self._file.fileno())
        return begins

    def todo(self) -> Iterator[int]:
        """Requests that are not done, in order."""
        return (index for index in range(len(self.job)) if index not in self.done)

    def take_up_failed(self) -> int:
        """Drops what ended without an answer, so that it is tried again; returns how many. Goes on from the results
        file where the job had ended. Raises BadJob when that is of another job."""
        kept = dict(self._results() if self.done else self._finished())
        failed = [index for index, told in kept.items() if told["error"] is not None]
        lines: list[dict[str, Any]] = [{"schema": _JOURNAL, "job_sha256": self.job.sha256}]
        lines += [{"index": index, "result": told} for index, told in kept.items() if told["error"] is None]
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as out:
            out.writelines(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
            out.flush()
            os.fsync(out.fileno())
        self._replace(fresh)
        return len(failed)

    def _finished(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.results.exists():
            return
        with self.results.open("rb") as results, self.job.path.open("rb") as file:
            for index, raw in enumerate(results):
                told = _told(raw)
                if index >= len(self.job) or told.get("custom_id") != line_at(self.job, index, file).custom_id:
                    raise BadJob(path=self.results, line=index + 1, why="is not a result of this job")
                yield index, told

    def _replace(self, fresh: Path) -> None:
        """The journal is this file from now on, locked before it has its name."""
        assert self._file is not None
        file = fresh.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.replace(self.path)
        self._file.close()
        self._file = file
        self.done.clear()
        self._read()

    def _results(self) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self._file is not None
        for index in sorted(self.done):
            self._file.seek(self.done[index])
            yield index, _told(self._file.readline())["result"]

    def finish(self) -> int:
        """Writes the results file in the job's order, whole, and removes the journal; returns how many failed."""
        assert len(self.done) == len(self.job)
        ready = self.results.with_name(self.results.name + ".ready")
        failed = 0
        with ready.open("wb") as out:
            for _, told in self._results():
                failed += told["error"] is not None
                out.write(json.dumps(told, separators=(",", ":")).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        ready.replace(self.results)
        self.path.unlink()
        return failed


def _told(raw: bytes) -> dict[str, Any]:
    try:
        told = json.loads(raw)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
