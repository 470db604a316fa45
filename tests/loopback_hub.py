"""A hub on loopback for the real huggingface_hub client: repositories, redirects to a CDN, ranges, and failures.

    with LoopbackHub() as hub:
        hub.add("org/model", {"config.json": b"{}"})
        hub.fail("/resolve/", status=500, times=1)
        ...HF_ENDPOINT=hub.url...
        assert hub.log[-1].path == "/org/model/resolve/main/config.json"

It answers what the hub's own API answers: model info (with `blobs`), tree, resolve with ETag, X-Repo-Commit and
X-Linked-*, large files through a redirect, commits, gated, private and renamed repositories.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_writes import WriteHandler, Writes

LARGE = (".gguf", ".safetensors", ".bin", ".model")


@dataclass(frozen=True)
class Hole:
    """A file of `n_bytes` whose first bytes are `head` and whose rest is zeros that nobody stores."""

    head: bytes
    n_bytes: int


@dataclass
class FakeFile:
    content: bytes | Hole
    sha256: str
    blob_id: str = ""

    @property
    def n_bytes(self) -> int:
        return self.content.n_bytes if isinstance(self.content, Hole) else len(self.content)

    def read(self, start: int, end: int) -> bytes:
        head = self.content.head if isinstance(self.content, Hole) else self.content
        part = head[start:end]
        return part + bytes(end - start - len(part))


@dataclass
class FakeRepository:
    id: str
    files: dict[str, FakeFile]
    commit: str
    gated: bool = False
    private: bool = False
    renamed_to: str | None = None
    licence: str | None = None
    base_model: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    branch_files: dict[str, dict[str, FakeFile]] = field(default_factory=dict)  # of branches that were written to


@dataclass
class Fault:
    """What to do instead of answering, for requests whose path has `match`."""

    match: str
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reset_after: int | None = None  # bytes of the body, then the connection breaks
    stall_s: float | None = None
    cut_after: int | None = None  # bytes of the body, then an end that looks like one
    claim_cut: bool = False  # with cut_after: the header says the short length, so nothing looks wrong
    hold_after: int | None = None  # bytes of the body, then the hub's `held` is set and it waits for `release`
    flip_at: int | None = None  # this byte of the file comes wrong, in an answer that has it
    body: bytes = b"{}"


@dataclass
class Logged:
    """A request, logged before it is answered; `n_sent` counts up while the body is sent."""

    method: str
    path: str
    byte_range: str | None
    authorization: str | None
    status: int
    n_sent: int


class LoopbackHub:
    """Serves until the `with` block ends. `token` is the one it accepts; `granted` whether that opens gated ones."""

    def __init__(self, *, latency_s: float = 0.0, token: str = "hf_good", granted: bool = True) -> None:
        self.latency_s, self.token, self.granted = latency_s, token, granted
        self.repositories: dict[str, FakeRepository] = {}
        self.blobs: dict[str, FakeFile] = {}
        self.plain: dict[str, FakeFile] = {}  # files by path, outside any repository
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.lock = threading.Lock()
        self.held, self.release = threading.Event(), threading.Event()
        self.serves_ranges = True
        self.writes = Writes()
        self.n_requests = 0
        self.before: Callable[[int], bool] | None = None  # given each request's number: True breaks the connection
        self.after: Callable[[int], bool] | None = None  # the same, once it was done and before it is answered
        hub = self

        class Handler(_Handler):
            owner = hub

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo: str, files: Mapping[str, bytes | Hole], **more: Any) -> FakeRepository:
        """A repository, replaced with a new commit if it is there."""
        made = {name: _fake_file(name, content) for name, content in files.items()}
        told = json.dumps([repo, {name: file.sha256 for name, file in made.items()}])
        repository = FakeRepository(repo, made, hashlib.sha1(told.encode()).hexdigest(), **more)
        earlier = self.repositories.get(repo)
        if earlier:
            repository.revisions.update(earlier.revisions)
        self.repositories[repo] = repository
        self.blobs.update({file.sha256: file for file in made.values()})
        return repository

    def rename(self, old: str, new: str) -> None:
        self.repositories[old] = FakeRepository(old, {}, "", renamed_to=new)

    def fail(self, match: str, *, times: int = 10**9, **more: Any) -> None:
        self.faults.append(Fault(match, times, **more))

    def pause(self, seconds: float) -> None:
        """Waits a little, for what happens in another process."""
        time.sleep(seconds)

    def take_fault(self, path: str, byte_range: str | None) -> Fault | None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range or "")
        with self.lock:
            for fault in self.faults:
                elsewhere = (
                    fault.flip_at is not None
                    and asked is not None
                    and not int(asked[1]) <= fault.flip_at <= int(asked[2] or fault.flip_at)
                )
                if fault.times > 0 and re.search(fault.match, path) and not elsewhere:
                    fault.times -= 1
                    return fault
        return None


def _fake_file(name: str, content: bytes | Hole) -> FakeFile:
    """With the hashes that the hub gives; those of a Hole are made up."""
    told = content if isinstance(content, bytes) else content.head + str(content.n_bytes).encode()
    blob_id = hashlib.sha1(b"blob %d\0" % len(told) + told).hexdigest()
    return FakeFile(content, hashlib.sha256(told).hexdigest(), blob_id)


class _Handler(WriteHandler, BaseHTTPRequestHandler):
    owner: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        with self.owner.lock:
            self.owner.n_requests += 1
            self._number = self.owner.n_requests
        if self.owner.before and self.owner.before(self._number):
            self._reset()
            return
        if self.owner.latency_s:
            time.sleep(self.owner.latency_s)
        self._fault = self.owner.take_fault(self.path, self.headers.get("Range"))
        if self._fault and self._fault.stall_s is not None:
            time.sleep(self._fault.stall_s)
            self.close_connection = True
            return
        if self._fault and self._fault.status is not None:
            self._content()
            self._answer(self._fault.status, self._fault.body, dict(self._fault.headers))
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not self.write_route(self.command):
                self._route()

    def _route(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path in self.owner.plain:
            return self._send_file(self.owner.plain[path], {})
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            return self._send_file(self.owner.blobs[match[1]], {"ETag": f'"{match[1]}"'})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            repository = self._repository(match[1], f"/api/models/{{}}{path[len('/api/models/' + match[1]) :]}")
            return repository and self._api(repository, match[2], match[3], parse_qs(url.query))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(match[1], f"/{{}}/resolve/{match[2]}/{match[3]}")
            return repository and self._resolve(repository, match[2], match[3])
        return self._answer(404, b"")

    def _repository(self, repo: str, moved: str) -> Any:
        """The repository, or None when a refusal was sent."""
        repository = self.owner.repositories.get(repo)
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {self.owner.token}":
            self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        if repository and repository.renamed_to:
            self._answer(307, b"", {"Location": moved.format(repository.renamed_to)})
            return None
        if repository is None or (repository.private and sent is None):
            self._answer(401 if sent is None else 404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _commit(self, repository: FakeRepository, revision: str | None) -> str | None:
        revision = revision or "main"
        if revision in ("main", repository.commit):
            return repository.commit
        if revision in repository.revisions.values():
            return revision
        if revision in repository.revisions:
            return repository.revisions[revision]
        self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _api(self, repository: FakeRepository, what: str | None, revision: str | None, query: Any) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        files = repository.branch_files.get(revision or "", repository.files)
        if what == "tree":
            rows = [{"type": "file", "path": n, "size": f.n_bytes, "oid": f.blob_id} for n, f in files.items()]
            self._answer(200, json.dumps(rows).encode())
            return
        siblings = []
        for name, file in files.items():
            sibling: dict[str, Any] = {"rfilename": name}
            if "blobs" in query:
                sibling |= {"size": file.n_bytes, "blobId": file.blob_id}
                if name.endswith(LARGE):
                    sibling["lfs"] = {"size": file.n_bytes, "sha256": file.sha256, "pointerSize": 134}
            siblings.append(sibling)
        told = {
            "id": repository.id, "modelId": repository.id, "sha": commit, "private": repository.private,
            "gated": "manual" if repository.gated else False, "tags": [], "siblings": siblings,
        }  # fmt: skip
        if repository.licence:
            told["tags"] = [f"license:{repository.licence}"]
        if repository.base_model:
            told["cardData"] = {"base_model": repository.base_model}
        self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: FakeRepository, revision: str, name: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        if repository.gated and not (self.headers.get("Authorization") and self.owner.granted):
            self._answer(403 if self.headers.get("Authorization") else 401, b"", {"X-Error-Code": "GatedRepo"})
            return
        branch = next((one for one, at in repository.revisions.items() if at == commit), "")
        file = repository.branch_files.get(branch, repository.files).get(name)
        if file is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.blob_id}"'}
        if name.endswith(LARGE):
            linked = {"X-Linked-Size": str(file.n_bytes), "X-Linked-Etag": f'"{file.sha256}"'}
            self._answer(302, b"", {**headers, **linked, "Location": f"/cdn/{file.sha256}?signed=1"})
            return
        self._send_file(file, headers)

    def _send_file(self, file: FakeFile, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.owner.serves_ranges else None
        if asked is None:
            self._answer(200, file, headers, start=0, end=file.n_bytes)
            return
        start, end = int(asked[1]), min(int(asked[2] or file.n_bytes) + bool(asked[2]), file.n_bytes)
        if start >= file.n_bytes:
            self._answer(416, b"", {"Content-Range": f"bytes */{file.n_bytes}"})
            return
        headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{file.n_bytes}"}
        self._answer(206, file, headers, start=start, end=end)

    def _answer(
        self,
        status: int,
        body: bytes | FakeFile,
        headers: Mapping[str, str] | None = None,
        *,
        start: int = 0,
        end: int = -1,
    ) -> None:
        if self.owner.after and self.owner.after(self._number):
            self._reset()
            return
        n_bytes = end - start if isinstance(body, FakeFile) else len(body)
        logged = Logged(
            self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"), status, 0
        )
        self.owner.log.append(logged)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        cut = self._fault.cut_after if self._fault else None
        claimed = min(n_bytes, cut) if cut is not None and self._fault.claim_cut else n_bytes
        self.send_header("Content-Length", str(claimed))
        self.end_headers()
        while logged.n_sent < n_bytes and self.command != "HEAD":
            piece = min(64 * 1024, n_bytes - logged.n_sent)
            if self._fault and self._fault.reset_after is not None:
                piece = min(piece, self._fault.reset_after - logged.n_sent)
                if piece <= 0:
                    self._reset()
                    return
            if cut is not None:
                piece = min(piece, cut - logged.n_sent)
                if piece <= 0:
                    self.close_connection = True
                    return
            hold = self._fault.hold_after if self._fault else None
            if hold is not None and logged.n_sent >= hold:
                self.owner.held.set()
                self.owner.release.wait(60)
                return
            at = start + logged.n_sent
            data = body.read(at, at + piece) if isinstance(body, FakeFile) else body[at : at + piece]
            if self._fault and self._fault.flip_at is not None and at <= self._fault.flip_at < at + len(data):
                i = self._fault.flip_at - at
                data = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
            self.wfile.write(data)
            logged.n_sent += len(data)

    def _reset(self) -> None:
        """Breaks the connection in a way the other side cannot take for an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
