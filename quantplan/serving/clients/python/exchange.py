"""One request and its answer in time: each phase has its limit, and what may be sent again is told from the rest."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx

from .answers import error_of, message_of, parse_object, too_long, word_of
from .asking import retry_after, wait_before
from .errors import (
    BadAnswer,
    Busy,
    ClientError,
    HttpError,
    Interrupted,
    Phase,
    RequestRefused,
    ServerFailed,
    TimedOut,
    Unreachable,
)
from .limits import Limits
from .sse import Event, SseParser

T = TypeVar("T")
_MAX_BODY_BYTES = 64 * 1024 * 1024
_BUSY = (429, 503)
_REFUSAL_S = 5.0  # for the body of a refusal
# how httpcore says that a connection ended without, or within, an answer; its other protocol errors are bad answers
_ENDED = ("Server disconnected", "peer closed connection")


class Again(Exception):
    """Nothing of an answer came: the request may be sent again. `error` is raised when it is not."""

    def __init__(self, error: ClientError, *, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.retry_after_s = error, retry_after_s


class Clock:
    """A call's total time, and the phases within."""

    def __init__(self, total_s: float) -> None:
        self.total_s = total_s
        self._ends = asyncio.get_running_loop().time() + total_s

    @property
    def left_s(self) -> float:
        return self._ends - asyncio.get_running_loop().time()

    async def within(self, work: Awaitable[T], *, phase: Phase, since: float, seconds: float) -> T:
        """The work's result. Raises TimedOut when `seconds` from `since` on, or the call's total, are over."""
        phase_left = since + seconds - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(work, max(0.0, min(phase_left, self.left_s)))
        except asyncio.TimeoutError:
            if phase_left <= self.left_s:
                raise TimedOut(phase=phase, seconds=seconds) from None
            raise TimedOut(phase="total", seconds=self.total_s) from None


class Exchange:
    """A request on a connection of its own, closed when it ends: the server sees it and stops what it does for it."""

    def __init__(self, http: httpx.AsyncClient, limits: Limits, clock: Clock) -> None:
        self._http, self._limits, self._clock = http, limits, clock
        self._response: httpx.Response | None = None
        self._bytes: AsyncIterator[bytes] | None = None
        self._parser = SseParser()
        self._events: deque[Event] = deque()
        self._began = False
        self._since = 0.0

    async def open(self, path: str, body: Mapping[str, Any]) -> None:
        """Sends a generation, as often as it may be, and returns at the first event of its answer."""

        async def first() -> None:
            response = await self._send(path, body, phase="first_token", seconds=self._limits.timeouts.first_token_s)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise BadAnswer(why=f"the answer is {kind or 'of no type'}, not a stream of events")
            self._bytes = response.aiter_raw()
            self._parser = SseParser()
            while not self._events and await self._read("first_token", self._limits.timeouts.first_token_s):
                pass
            if not self._events:
                raise Interrupted(why="the stream ended before its first event")

        await self._retrying(first)

    async def ask(self, path: str, body: Mapping[str, Any], *, phase: Phase, seconds: float) -> dict[str, Any]:
        """The answer's object to a request that generates nothing."""

        async def whole() -> dict[str, Any]:
            response = await self._send(path, body, phase=phase, seconds=seconds)
            return parse_object(await self._rest(response, phase=phase, seconds=seconds), what="the answer")

        return await self._retrying(whole)

    async def event(self) -> Event | None:
        """The next event, None where the connection ended properly."""
        self._since = asyncio.get_running_loop().time()
        while not self._events:
            if not await self._read("between_tokens", self._limits.timeouts.between_tokens_s):
                return None
        return self._events.popleft()

    async def close(self) -> None:
        """Ends the connection."""
        response, self._response, self._bytes = self._response, None, None
        if response is not None:
            await response.aclose()

    async def _retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await attempt()
            except Again as again:
                await self.close()
                wait = wait_before(
                    self._limits.retries, tries=tries, retry_after_s=again.retry_after_s, left_s=self._clock.left_s,
                    share=random.random(),
                )  # fmt: skip
                if wait is None:
                    if isinstance(again.error, Busy | Unreachable):
                        again.error.tries = tries
                    raise again.error from again.__cause__
                await asyncio.sleep(wait)
            except BaseException:
                await self.close()
                raise

    async def _send(self, path: str, body: Mapping[str, Any], *, phase: Phase, seconds: float) -> httpx.Response:
        """The response's head. Raises Again, or what its status means."""
        self._since = asyncio.get_running_loop().time()
        request = self._http.build_request("POST", path, json=body)
        try:
            work = self._http.send(request, stream=True)
            self._response = await self._clock.within(work, phase=phase, since=self._since, seconds=seconds)
        except httpx.ConnectTimeout as error:
            raise Again(TimedOut(phase="connect", seconds=self._limits.timeouts.connect_s)) from error
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        if self._response.status_code == 200:
            return self._response
        raise await self._refusal(self._response, phase=phase, seconds=seconds)

    def _lost(self, error: httpx.HTTPError) -> Exception:
        """A connection that failed: before anything of an answer came, the request may go again."""
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.RemoteProtocolError) and not why.startswith(_ENDED):
            return BadAnswer(why=f"the answer is no HTTP: {why}")
        if not isinstance(error, httpx.NetworkError | httpx.TimeoutException | httpx.RemoteProtocolError):
            return BadAnswer(why=why)
        if self._began:
            return Interrupted(why=f"the connection ended within the answer: {why}")
        return Again(Unreachable(why=why, tries=1))

    async def _refusal(self, response: httpx.Response, *, phase: Phase, seconds: float) -> Exception:
        try:
            raw = await self._rest(response, phase=phase, seconds=min(seconds, _REFUSAL_S))
        except (Again, Interrupted, BadAnswer, TimedOut):
            raw = b""  # its status says enough
        status, error = response.status_code, error_of(raw)
        code, message = word_of(error), message_of(error)
        if status in _BUSY:
            after = retry_after(response.headers.get("retry-after"))
            busy = Busy(status=status, code=code, message=message, retry_after_s=after, tries=1)
            return Again(busy, retry_after_s=after)
        kind: type[HttpError] = ServerFailed if status >= 500 else RequestRefused
        return too_long(error) or kind(status=status, code=code, message=message)

    async def _rest(self, response: httpx.Response, *, phase: Phase, seconds: float) -> bytes:
        pieces, size = [], 0
        self._bytes = response.aiter_raw()
        while (piece := await self._piece(phase, seconds)) is not None:
            size += len(piece)
            if size > _MAX_BODY_BYTES:
                raise BadAnswer(why=f"the answer is longer than {_MAX_BODY_BYTES} bytes")
            pieces.append(piece)
            self._began = response.status_code == 200
        await self.close()
        return b"".join(pieces)

    async def _read(self, phase: Phase, seconds: float) -> bool:
        """Takes in what comes next; False at the end of the answer."""
        piece = await self._piece(phase, seconds)
        if piece is None:
            return False
        try:
            found = self._parser.feed(piece)
        except BadAnswer:
            self._began = True
            raise
        self._began = self._began or bool(found) or not self._parser.idle
        self._events.extend(found)
        return True

    async def _piece(self, phase: Phase, seconds: float) -> bytes | None:
        assert self._bytes is not None
        try:
            work = self._bytes.__anext__()
            return await self._clock.within(work, phase=phase, since=self._since, seconds=seconds)
        except StopAsyncIteration:
            return None
        except httpx.HTTPError as error:
            raise self._lost(error) from error
