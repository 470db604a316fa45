"""A proxy that does to generations what networks do, byte for byte, and keeps a log of what it saw.

Other paths (counts) pass. Each generation meets the next fault in line; when there is none left, it passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

GENERATIONS = ("/v1/chat/completions", "/v1/completions")
LONG_BODY = b'"max_tokens":1000,"logprobs":true,"top_logprobs":300,"ignore_eos":true'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one generation.

    `raw` is answered instead of the engine's answer. Of the engine's, or of `raw`, what comes before `until` (with it)
    passes, or `n_bytes`; then the connection is reset, ended, or held without a word. `piece_bytes` at a time pass,
    with `pause_s` between. `forward`: whether the engine gets the request where `raw` is None.
    """

    raw: bytes | None = None
    forward: bool = True
    until: bytes | None = None
    n_bytes: int | None = None
    then: str = "pass"  # pass, reset, end, hold
    piece_bytes: int | None = None
    pause_s: float = 0.0
    long: bool = False  # the engine is asked for a much longer answer than the client asks for


@dataclass(slots=True)
class Log:
    """What the proxy saw: generations that came, that were forwarded, and that the engine answered to the end."""

    asked: list[bytes] = field(default_factory=list)  # heads
    n_forwarded: int = 0
    n_finished: int = 0
    n_all: int = 0
    n_now: int = 0
    most_at_once: int = 0  # generations


class FaultProxy:
    """Listens on a loopback port, on an event loop of its own."""

    def __init__(self, upstream_port: int | None, port: int = 0) -> None:
        self.upstream_port, self.port = upstream_port, port
        self.faults: list[Fault] = []
        self.log = Log()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plan(self, *faults: Fault) -> Log:
        """These are next; the log starts anew."""
        self.faults, self.log = list(faults), Log()
        return self.log

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 22)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._attend(reader, writer)
        writer.close()
        self._tasks.discard(task)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        self.log.n_all += 1
        path = head.split(b" ", 2)[1].decode()
        fault = Fault()
        if path in GENERATIONS:
            self.log.asked.append(head)
            fault = self.faults.pop(0) if self.faults else Fault()
        watch = asyncio.ensure_future(reader.read())
        log, counted = self.log, path in GENERATIONS
        log.n_now += counted
        log.most_at_once = max(log.most_at_once, log.n_now)
        pump = asyncio.ensure_future(self._pump(head, body, writer, fault, counted=counted))
        try:  # who went away is forgotten, as nginx does it
            await asyncio.wait({watch, pump}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            log.n_now -= counted
            for one in (watch, pump):
                one.cancel()
            await asyncio.gather(watch, pump, return_exceptions=True)

    async def _pump(
        self, head: bytes, body: bytes, writer: asyncio.StreamWriter, fault: Fault, *, counted: bool
    ) -> None:
        sent = b""
        async with contextlib.aclosing(self._answer(head, body, fault, counted=counted)) as pieces:
            async for piece in pieces:
                end = self._end(sent + piece, fault)
                passed = piece if end is None else (sent + piece)[len(sent) : end]
                await self._write(writer, passed, fault)
                sent += passed
                if end is not None:
                    break
        if fault.then == "reset":
            reset(writer)
        elif fault.then == "hold":
            await asyncio.sleep(3600)

    def _end(self, seen: bytes, fault: Fault) -> int | None:
        if fault.n_bytes is not None:
            return fault.n_bytes if len(seen) >= fault.n_bytes else None
        if fault.until is not None and fault.until in seen:
            return seen.index(fault.until) + len(fault.until)
        return None

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, fault: Fault) -> None:
        size = fault.piece_bytes or max(1, len(data))
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if fault.piece_bytes is not None:
                await asyncio.sleep(fault.pause_s)

    async def _answer(self, head: bytes, body: bytes, fault: Fault, *, counted: bool) -> AsyncGenerator[bytes, None]:
        if fault.raw is not None:
            yield fault.raw
            return
        if not fault.forward:
            return
        assert self.upstream_port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            body = re.sub(rb'"max_tokens":\d+', LONG_BODY, body) if fault.long else body
            dropped = (b"connection:", b"content-length:")
            lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(dropped)]
            lines += [b"Connection: close", b"Content-Length: %d" % len(body), b"", b""]
            writer.write(b"\r\n".join(lines) + body)
            self.log.n_forwarded += counted
            tail, ended = b"", False
            while piece := await reader.read(65536):
                if not ended and b"[DONE]" in tail + piece:
                    self.log.n_finished += counted
                    ended = True
                tail = piece[-20:]
                yield piece
        finally:
            writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST: what a crashed peer or a firewall does."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def fault_proxy(upstream_port: int | None, *, port: int = 0) -> Iterator[FaultProxy]:
    """A proxy before an engine; all its connections end with the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy", daemon=True)
    thread.start()
    proxy = FaultProxy(upstream_port, port)
    server = asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)

    async def end() -> None:
        server.close()
        for task in list(proxy._tasks):
            task.cancel()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)

    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def status(code: int, *, headers: bytes = b"", body: bytes = b'{"error":{"message":"busy","code":"x"}}') -> bytes:
    """A whole refusal."""
    return (
        b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s"
        % (code, headers, len(body), body)
    )


def chunk(data: bytes) -> bytes:
    """A piece of a body in chunked transfer."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*events: bytes, ended: bool = True) -> bytes:
    """An answer of events; its last chunk where it ends properly."""
    return STREAM_HEAD + b"".join(chunk(event) for event in events) + (b"0\r\n\r\n" if ended else b"")


def token(text: str) -> bytes:
    """An event with a piece of text in UTF-8."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()
