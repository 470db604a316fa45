"""One request of a client: let in, checked, passed to the engine, and its answer passed back as it comes."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from quantplan.serving.gateway import refusals
from quantplan.serving.gateway.asked import EMBEDDING, GENERATING, Asked, cap_answer, read_asked
from quantplan.serving.gateway.house import House, Served
from quantplan.serving.gateway.keys import Key
from quantplan.serving.gateway.refusals import Refusal
from quantplan.serving.gateway.upstream import Answer, EngineAway, EngineEnded, EngineSilent, deadline

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SILENCE_S = 600.0  # without one byte from the engine
BODY_SILENCE_S = 30.0  # without one byte from the client
CLIENT_SILENCE_S = 60.0  # in which a client reads nothing of its stream: its place is somebody else's then
_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_TAIL_PIECES = 3  # the engine's last events carry its counts
_PASSED_ON = frozenset({b"content-type", b"cache-control"})
_COUNTS = {
    "prompt": re.compile(rb'"(?:prompt_tokens|input_tokens)":\s*(\d+)'),
    "completion": re.compile(rb'"(?:completion_tokens|output_tokens)":\s*(\d+)'),
    "cached": re.compile(rb'"cache_n":\s*(\d+)'),
    "read": re.compile(rb'"prompt_n":\s*(\d+)'),
    "written": re.compile(rb'"predicted_n":\s*(\d+)'),
}


@dataclass(slots=True, kw_only=True)
class Visit:
    """What is known of a request while it lasts; its outcome is counted once."""

    request_id: str
    began: float
    path: str
    key: Key | None = None
    model: str | None = None
    headers_sent: bool = False
    gone: bool = False
    first_at: float | None = None
    n_events: int = 0
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=_TAIL_PIECES))


class Relay:
    """The ASGI endpoint of every path that goes to the engine."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        visit = Visit(request_id=_request_id(headers), began=time.monotonic(), path=scope["path"])
        outcome = "cancelled"
        try:
            outcome = await self._attend(visit, headers, receive, send)
        except Refusal as refusal:
            outcome = refusal.code
            await _refuse(refusal, visit, send)
        except asyncio.CancelledError:
            if not visit.gone:
                raise  # the server stops
        finally:
            self.house.finished(visit, outcome)

    async def _attend(self, visit: Visit, headers: dict[bytes, bytes], receive: Receive, send: Send) -> str:
        house = self.house
        visit.key = house.admit_key(headers)
        raw = await _body(receive, limit_bytes=house.body_limit_bytes, headers=headers)
        visit.began = time.monotonic()
        asked = read_asked(visit.path, raw)
        served = house.served_as(asked.model)
        visit.model = served.name
        watch = asyncio.ensure_future(_leave_when_gone(receive, visit, asyncio.current_task()))
        try:
            if visit.path in GENERATING or visit.path in EMBEDDING:
                return await self._in_a_place(visit, asked, raw, served, send)
            return await self._exchange(visit, asked, raw, served, send)
        finally:
            watch.cancel()

    async def _in_a_place(self, visit: Visit, asked: Asked, raw: bytes, served: Served, send: Send) -> str:
        assert visit.key is not None
        cap = min(served.door.limits.max_tokens, visit.key.max_tokens or served.door.limits.max_tokens)
        body, capped = cap_answer(asked, max_tokens=cap, n_ctx=served.door.limits.n_ctx)
        waited = time.monotonic()
        ticket = await served.door.enter(visit.key.name, asked.n_sequences, key_in_flight=visit.key.in_flight)
        try:
            self.house.metrics.queued.observe(time.monotonic() - waited, model=served.name)
            if body is not asked.body:
                raw = json.dumps(body).encode()
            return await self._exchange(visit, asked, raw, served, send, capped=capped)
        finally:
            served.door.leave(ticket)

    async def _exchange(
        self, visit: Visit, asked: Asked, raw: bytes, served: Served, send: Send, *, capped: int | None = None
    ) -> str:
        house = self.house
        await house.board.take(served.name)
        try:
            if visit.path in GENERATING:
                if not served.check.learned:
                    await served.check.learn()
                how = await served.check.check(asked)
                house.metrics.count(house.metrics.counted_prompts, model=served.name, how=how)
            if house.several and asked.body.get("model") != served.name:
                raw = json.dumps({**json.loads(raw), "model": served.name}).encode()
            pacer = house.pacer if asked.stream else None
            try:
                kind = ((b"content-type", b"application/json"),)
                answer = await house.engine.send("POST", visit.path, raw, headers=kind, pacer=pacer)
            except EngineAway as error:
                raise refusals.engine_away(str(error)) from None
            try:
                return await self._pass_back(visit, answer, served, send, stream=asked.stream, capped=capped)
            finally:
                answer.close()
        finally:
            house.board.give(served.name)

    async def _pass_back(
        self, visit: Visit, answer: Answer, served: Served, send: Send, *, stream: bool, capped: int | None
    ) -> str:
        try:
            await answer.head(SILENCE_S)
            extra = _own_headers(visit, capped)
            if stream and answer.status == 200:
                await self._stream(visit, answer, send, extra)
            else:
                body = await answer.rest(SILENCE_S)
                visit.tail.append(body)
                await _whole(visit, send, answer.status, [*_kept(answer), *extra], body)
        except EngineEnded:
            raise refusals.engine_ended() from None
        except EngineSilent:
            raise refusals.engine_slow(SILENCE_S) from None
        except asyncio.TimeoutError:
            return "client_stalled"
        if answer.status == 200 and visit.path in GENERATING:
            self._count(visit, served)
        return "ok" if answer.status < 400 else f"engine_{answer.status}"

    async def _stream(self, visit: Visit, answer: Answer, send: Send, extra: list[tuple[bytes, bytes]]) -> None:
        kept = [*_kept(answer), (b"x-accel-buffering", b"no"), *extra]
        piece = await answer.piece(SILENCE_S)
        await send({"type": "http.response.start", "status": answer.status, "headers": kept})
        visit.headers_sent, visit.first_at = True, time.monotonic()
        torn = b""  # the beginning of an event whose end has not come: an engine that ends there leaves no half one
        while piece:
            visit.n_events += piece.count(b"data: ")
            visit.tail.append(piece)
            if torn or not piece.endswith(b"\n\n"):
                whole, end, torn = (torn + piece).rpartition(b"\n\n")
                piece = whole + end
            if piece:
                async with deadline(CLIENT_SILENCE_S):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await answer.piece(SILENCE_S)
        await send({"type": "http.response.body", "body": torn, "more_body": False})

    def _count(self, visit: Visit, served: Served) -> None:
        assert visit.key is not None
        metrics, now = self.house.metrics, time.monotonic()
        n_prompt, n_completion = read_counts(b"".join(visit.tail))
        n_completion = visit.n_events if n_completion is None else n_completion
        metrics.add_tokens(
            model=served.name, key=visit.key.name, n_prompt=n_prompt or 0, n_completion=n_completion
        )  # fmt: skip
        if visit.first_at is not None:
            metrics.ttft.observe(visit.first_at - visit.began, model=served.name)
            if n_completion > 1:
                metrics.per_token.observe((now - visit.first_at) / (n_completion - 1), model=served.name)


def read_counts(tail: bytes) -> tuple[int | None, int | None]:
    """(prompt tokens, completion tokens) from the end of an answer: its usage, else llama-server's timings."""

    def last(name: str) -> int | None:
        found = _COUNTS[name].findall(tail)
        return int(found[-1]) if found else None

    prompt, completion = last("prompt"), last("completion")
    if prompt is None and (read := last("read")) is not None:
        prompt = read + (last("cached") or 0)
    return prompt, last("written") if completion is None else completion


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _own_headers(visit: Visit, capped: int | None) -> list[tuple[bytes, bytes]]:
    found = [(b"x-request-id", visit.request_id.encode())]
    if capped is not None:
        found.append((b"x-max-tokens", str(capped).encode()))
    return found


def _kept(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in answer.headers if name in _PASSED_ON]


async def _body(receive: Receive, *, limit_bytes: int, headers: dict[bytes, bytes]) -> bytes:
    """The whole body. Raises Refusal: too large, too slow, or its client went away."""
    told = headers.get(b"content-length", b"")
    if told.isdigit() and int(told) > limit_bytes:
        raise refusals.too_large(limit_bytes)
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            async with deadline(BODY_SILENCE_S):
                message = await receive()
        except asyncio.TimeoutError:
            raise refusals.body_slow() from None
        if message["type"] == "http.disconnect":
            raise refusals.left()
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise refusals.too_large(limit_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _leave_when_gone(receive: Receive, visit: Visit, work: asyncio.Task[Any] | None) -> None:
    """Ends the work when its client has gone: the engine's connection closes with it, and so does its generation."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if work is not None and not work.done():
        visit.gone = True
        work.cancel()


async def _whole(visit: Visit, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    visit.headers_sent = True
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _refuse(refusal: Refusal, visit: Visit, send: Send) -> None:
    """As a response of its own, or as the last event of a stream that has begun."""
    if visit.headers_sent:
        await send({"type": "http.response.body", "body": refusal.event(), "more_body": False})
        return
    await _whole(visit, send, refusal.status, [*refusal.headers(), *_own_headers(visit, None)], refusal.body())
