"""One request to the engine and its answer as it comes: asyncio and httptools, one connection a request.

A connection is never reused: an idle one that the engine has just closed would need a retry, and a request that may
have started is never repeated. Loopback connects in a tenth of a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

READ_INTERVAL_S = 0.01  # tokens of one stream closer together than this go on together (docs/gateway.md)
CONNECT_TIMEOUT_S = 5.0
_UNPACED_READS = 3  # the head, the role and the first token go on as they come

Header = tuple[bytes, bytes]


class EngineAway(Exception):
    """The engine could not be reached: nothing was sent."""


class EngineEnded(Exception):
    """The connection ended before the answer did."""


class EngineSilent(Exception):
    """Nothing came for too long."""


class Pacer:
    """Lets streams that were just read be read again at the next beat: one timer for all of them.

    Each read of a token costs this process a wake-up, and the engine shares the processors with it. A stream that
    pauses longer than a beat is read at once.
    """

    def __init__(self, interval_s: float = READ_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._paused: list[asyncio.ReadTransport] = []
        self._timer: asyncio.TimerHandle | None = None

    def pause(self, transport: asyncio.ReadTransport) -> None:
        """Reads no more from the transport until the next beat."""
        transport.pause_reading()
        self._paused.append(transport)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._beat)

    def _beat(self) -> None:
        self._timer = None
        paused, self._paused = self._paused, []
        for transport in paused:
            if not transport.is_closing():
                with contextlib.suppress(RuntimeError):  # reading already
                    transport.resume_reading()


@dataclass(slots=True)
class Answer(asyncio.Protocol):
    """What the engine answers; also the connection it comes by."""

    pacer: Pacer | None
    status: int = 0
    headers: list[Header] = field(default_factory=list)
    done: bool = False
    _parser: Any = None
    _transport: Any = None
    _waiter: asyncio.Future[None] | None = None
    _heard: float = 0.0
    _body: list[bytes] = field(default_factory=list)
    _lost: bool = False
    _head: bool = False
    _silent: bool = False
    _reads: int = 0
    _watchdog: asyncio.TimerHandle | None = None

    # the connection's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        import httptools

        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._lost = True
            self._transport.abort()
        self._reads += 1
        self._heard = time.monotonic()
        if self.pacer is not None and self._reads > _UNPACED_READS and not self.done:
            self.pacer.pause(self._transport)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done and self._head and not self._framed():
            self.done = True  # an answer without a length ends with its connection
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _framed(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # the parser's side
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status, self._head = self._parser.get_status_code(), True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.done = True

    # the reader's side
    async def head(self, timeout_s: float) -> None:
        """Returns when status and headers are there. Raises EngineEnded, EngineSilent."""
        while not self._head:
            if self._lost:
                raise EngineEnded
            await self._wait(timeout_s)

    async def piece(self, timeout_s: float) -> bytes:
        """The next bytes of the body, b"" at its end. Raises EngineEnded, EngineSilent."""
        while not self._body:
            if self.done:
                return b""
            if self._lost:
                raise EngineEnded
            await self._wait(timeout_s)
        found = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return found

    async def rest(self, timeout_s: float) -> bytes:
        """The whole body."""
        pieces = []
        while piece := await self.piece(timeout_s):
            pieces.append(piece)
        return b"".join(pieces)

    async def _wait(self, timeout_s: float) -> None:
        if self._silent:
            raise EngineSilent
        loop = asyncio.get_running_loop()
        if self._watchdog is None:  # one timer an answer, not one a token
            self._heard = time.monotonic()
            self._watchdog = loop.call_later(timeout_s, self._watch, timeout_s)
        self._waiter = loop.create_future()
        await self._waiter
        if self._silent:
            raise EngineSilent

    def _watch(self, timeout_s: float) -> None:
        left = self._heard + timeout_s - time.monotonic()
        self._silent = left <= 0
        if self._silent:
            self._wake()
        else:
            self._watchdog = asyncio.get_running_loop().call_later(left, self._watch, timeout_s)

    def close(self) -> None:
        """Ends the connection: an engine that still generates for it stops."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where the engine listens, and the key it was started with."""

    host: str
    port: int
    key: str | None = None

    async def send(
        self, method: str, path: str, body: bytes = b"", *, headers: Iterable[Header] = (), pacer: Pacer | None = None
    ) -> Answer:
        """Sends a request and returns its answer to be read. Raises EngineAway when no connection is made."""
        loop = asyncio.get_running_loop()
        try:
            async with deadline(CONNECT_TIMEOUT_S):
                _, answer = await loop.create_connection(lambda: Answer(pacer), self.host, self.port)
        except (OSError, asyncio.TimeoutError) as error:
            raise EngineAway(str(error) or "no connection in time") from None
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nconnection: close\r\n".encode()]
        if self.key:
            lines.append(f"authorization: Bearer {self.key}\r\n".encode())
        lines += [name + b": " + value + b"\r\n" for name, value in headers]
        lines.append(f"content-length: {len(body)}\r\n\r\n".encode())
        answer._transport.write(b"".join(lines) + body)
        return answer

    async def ask(self, method: str, path: str, body: bytes = b"", *, timeout_s: float) -> tuple[int, bytes]:
        """(status, body) of a small request. Raises EngineAway, EngineEnded, EngineSilent."""
        answer = await self.send(method, path, body, headers=((b"content-type", b"application/json"),))
        try:
            await answer.head(timeout_s)
            return answer.status, await answer.rest(timeout_s)
        finally:
            answer.close()


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> Any:
    """asyncio.timeout (Python 3.11) for 3.10 too: cancels the block, raises asyncio.TimeoutError."""
    task, expired = asyncio.current_task(), []
    assert task is not None

    def expire() -> None:
        expired.append(True)
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if expired:
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()
