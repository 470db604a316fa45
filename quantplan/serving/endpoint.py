"""A server that speaks OpenAI's API, asked over HTTP with the standard library: for load and batch."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quantplan.errors import BadValue, ServerUnreachable

_CONNECT_TIMEOUT_S = 10.0


class Broken(Exception):
    """The connection failed. `started` is False when the request cannot have been begun."""

    def __init__(self, why: str, *, started: bool) -> None:
        super().__init__(why)
        self.started = started


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    retry_after_s: float | None
    request_id: str | None

    def json(self) -> Any:
        """Its JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def message(self) -> str:
        """What the server said of an error, in one line."""
        told = self.json()
        error = told.get("error") if isinstance(told, dict) else None
        if isinstance(error, dict) and error.get("message"):
            return str(error["message"])
        return self.body[:200].decode("utf-8", errors="replace") or f"status {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the server is. `base` is the path before /v1, usually empty."""

    secure: bool
    host: str
    port: int
    base: str
    key: str | None = None

    @property
    def url(self) -> str:
        named = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{named}:{self.port}{self.base}"

    @property
    def is_local(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float) -> Reply:
        """A request and its whole answer, whatever its status. Raises Broken."""
        connection = self._open(timeout_s)
        try:
            answer = self._send(connection, method, path, body)
            try:
                raw = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"the answer broke off ({_why(error)})", started=True) from None
            return _reply(answer, raw)
        finally:
            connection.close()

    def stream(self, path: str, body: Any, *, timeout_s: float) -> Iterator[bytes | Reply]:
        """The data of each server-sent event as it comes, without [DONE]; one Reply instead where the status is not
        200. Raises Broken, also when the stream ends without its [DONE]."""
        connection = self._open(timeout_s)
        try:
            answer = self._send(connection, "POST", path, body)
            if answer.status != 200:
                yield _reply(answer, answer.read())
                return
            done = False
            for line in answer:
                if line.startswith(b"data:"):
                    event = line[5:].strip()
                    done = done or event == b"[DONE]"
                    if not done:
                        yield event
            if not done:
                raise Broken("the stream ended before its end was told", started=True)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"the stream broke off ({_why(error)})", started=True) from None
        finally:
            connection.close()

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self.secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=_CONNECT_TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            raise Broken(_why(error), started=False) from None
        connection.sock.settimeout(timeout_s)
        return connection

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        raw = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self.base + path, raw, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"no answer ({_why(error)})", started=True) from None


def _reply(answer: http.client.HTTPResponse, raw: bytes) -> Reply:
    wait = answer.headers.get("Retry-After", "")
    return Reply(
        status=answer.status, body=raw, retry_after_s=float(wait) if wait.isdecimal() else None,
        request_id=answer.headers.get("x-request-id"),
    )  # fmt: skip


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def endpoint(url: str, *, key: str | None = None) -> Endpoint:
    """A server by its URL, with or without /v1. Raises BadValue."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        raise BadValue(what="URL", value=url, why="has no such port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadValue(what="URL", value=url, why="is not http://HOST:PORT")
    secure = parts.scheme == "https"
    base = parts.path.rstrip("/").removesuffix("/v1")
    return Endpoint(secure=secure, host=parts.hostname, port=port or (443 if secure else 80), base=base, key=key)


def find_model(server: Endpoint, *, wait_s: float = 0.0) -> str:
    """The name of the first served model. Raises ServerUnreachable: nothing there, a wrong key, another API."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            reply = server.ask("GET", "/v1/models", timeout_s=_CONNECT_TIMEOUT_S)
        except Broken as error:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ServerUnreachable(url=server.url, why=f"does not answer ({error})") from None
        if reply.status == 503 and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        if reply.status != 200:
            raise ServerUnreachable(url=server.url, why=f"answered {reply.status}: {reply.message()}")
        try:
            return str(reply.json()["data"][0]["id"])
        except (TypeError, KeyError, IndexError):
            raise ServerUnreachable(url=server.url, why="does not list models as OpenAI's API does") from None
