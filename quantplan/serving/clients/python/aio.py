"""The client for asyncio. One client belongs to one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from .answers import Answer, Gathered, Piece, piece_of
from .asking import Message, Options, answer_tokens, body_of
from .errors import BadAnswer, Busy, ClientError, Closed, HttpError, Interrupted, NotServed
from .exchange import Clock, Exchange
from .limits import LIMITS, Limits

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


class AsyncClient:
    """Talks to the planned server: as many requests at once as it has slots, the others wait.

    `api_key` is sent as a bearer token. `base_url` is the server's root, with or without /v1.
    """

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, limits: Limits = LIMITS,
        verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
            raise ValueError("an API key is printable ASCII")
        headers = {"accept-encoding": "identity", "connection": "close"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self.limits = limits
        self._slots = asyncio.Semaphore(limits.slots)
        # a connection a request: one that was kept and has just been closed would make a failure ambiguous
        self._http = httpx.AsyncClient(
            base_url=_root(base_url or limits.base_url), headers=headers, verify=verify, trust_env=False,
            timeout=httpx.Timeout(None, connect=limits.timeouts.connect_s), follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Answer:
        """The whole answer to a chat. It is streamed from the server, so that a lost connection is seen at once."""
        return await _whole(self.stream_chat(messages, **options))

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """The whole continuation of a text."""
        return await _whole(self.stream_complete(prompt, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> AsyncStream:
        """`async with client.stream_chat(…) as pieces: async for piece in pieces: …`; leaving the block ends it."""
        return self._stream(_CHAT, {"messages": list(messages)}, options)

    def stream_complete(self, prompt: str, **options: Unpack[Options]) -> AsyncStream:
        return self._stream(_COMPLETIONS, {"prompt": prompt}, options)

    async def count_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> int | None:
        """Tokens of a chat's prompt, template included, as the server counts them; None where it does not count."""
        clock = Clock(options.get("timeout_s", self.limits.timeouts.total_s))
        return await self.count(_CHAT, body_of(self.limits, {"messages": list(messages)}, options), clock)

    async def count_text(self, text: str) -> int | None:
        """Tokens of a text, as the server counts them for a completion."""
        return await self.count(_COMPLETIONS, {"prompt": text}, Clock(self.limits.timeouts.total_s))

    async def embed(self, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        """A vector for each text, in their order."""
        if not self.limits.embeddings:
            raise NotServed(model=self.limits.model, what="embeddings")
        clock = Clock(self.limits.timeouts.total_s)
        for text in texts:
            answer_tokens(self.limits, asked=None, n_prompt=await self.count(_COMPLETIONS, {"prompt": text}, clock))
        async with self.place(clock):
            told = await self.exchange(clock).ask(
                _EMBEDDINGS, {"model": self.limits.model, "input": list(texts)},
                phase="first_token", seconds=self.limits.timeouts.first_token_s,
            )  # fmt: skip
        try:
            rows = sorted(told["data"], key=lambda row: int(row["index"]))
            found = tuple(tuple(float(value) for value in row["embedding"]) for row in rows)
        except (KeyError, TypeError, ValueError):
            raise BadAnswer(why="the answer holds no embeddings") from None
        if len(found) != len(texts):
            raise BadAnswer(why=f"{len(texts)} texts were sent, {len(found)} vectors came")
        return found

    # what streams are made of
    def _stream(self, path: str, content: Mapping[str, Any], options: Options) -> AsyncStream:
        if self.limits.embeddings:
            raise NotServed(model=self.limits.model, what="generation")
        return AsyncStream(self, path, body_of(self.limits, content, options), options)

    def exchange(self, clock: Clock) -> Exchange:
        return Exchange(self._http, self.limits, clock)

    @contextlib.asynccontextmanager
    async def place(self, clock: Clock) -> Any:
        """One of the slots. Raises TimedOut (total)."""
        now = asyncio.get_running_loop().time()
        await clock.within(self._slots.acquire(), phase="total", since=now, seconds=clock.total_s)
        try:
            yield
        finally:
            self._slots.release()

    async def count(self, path: str, body: Mapping[str, Any], clock: Clock) -> int | None:
        """The prompt's tokens; None where the server has no such path or cannot say."""
        if path == _COMPLETIONS:
            return await self._tokenize(str(body["prompt"]), clock)
        told = await self._looked_up(f"{path}/input_tokens", {**body, "stream": False}, clock)
        if told is not None:
            counted = told.get("input_tokens")
            return counted if isinstance(counted, int) else None
        rendered = (await self._looked_up("/apply-template", {**body, "stream": False}, clock) or {}).get("prompt")
        return await self._tokenize(rendered, clock) if isinstance(rendered, str) else None

    async def _tokenize(self, text: str, clock: Clock) -> int | None:
        asked = {"model": self.limits.model, "content": text, "add_special": True, "parse_special": True}
        tokens = (await self._looked_up("/tokenize", asked, clock) or {}).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    async def _looked_up(self, path: str, body: Mapping[str, Any], clock: Clock) -> dict[str, Any] | None:
        """None where the server refuses: to the request itself it will say why. Raises Busy."""
        try:
            return await self.exchange(clock).ask(path, body, phase="count", seconds=self.limits.timeouts.count_s)
        except Busy:
            raise
        except HttpError:
            return None


class AsyncStream:
    """An answer's pieces. Nothing is sent before the first is asked for; `gathered` is what has come so far."""

    def __init__(self, client: AsyncClient, path: str, body: dict[str, Any], options: Options) -> None:
        self._client, self._path, self._body, self._options = client, path, body, options
        self._stack = contextlib.AsyncExitStack()
        self._exchange: Exchange | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._entered = self._closed = self._ended = False
        self.gathered = Gathered()

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if not self._entered:
            raise TypeError("a stream is read within its with block: leaving it ends the answer")
        if self._closed and not self._ended:
            raise Closed
        if self._ended:
            raise StopAsyncIteration
        self._reader = asyncio.current_task()
        try:
            return await self._next()
        except StopAsyncIteration:
            self._ended = True
            await self.aclose()
            raise
        except asyncio.CancelledError:
            if not self._closed:
                raise
            if self._reader is not None and hasattr(self._reader, "uncancel"):
                self._reader.uncancel()  # it was aclose, from another task
            raise Closed from None
        except ClientError as error:
            error.partial = self.gathered.text
            await self.aclose()
            raise
        finally:
            self._reader = None

    async def aclose(self) -> None:
        """Ends the answer: its connection is closed, the server stops generating, and the place is free again."""
        self._closed = True
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        await self._stack.aclose()

    async def _next(self) -> Piece:
        if self._exchange is None:
            self._exchange = await self._open()
        event = await self._exchange.event()
        if event is None:
            raise Interrupted(why="the stream ended without [DONE]")
        piece = piece_of(event)
        if piece is None:
            raise StopAsyncIteration
        self.gathered.add(piece)
        return piece

    async def _open(self) -> Exchange:
        limits = self._client.limits
        clock = Clock(self._options.get("timeout_s", limits.timeouts.total_s))
        asked = self._options.get("max_tokens")
        answer_tokens(limits, asked=asked, n_prompt=None)
        n_prompt = await self._client.count(self._path, self._body, clock)
        n_answer = answer_tokens(limits, asked=asked, n_prompt=n_prompt)
        await self._stack.enter_async_context(self._client.place(clock))
        exchange = self._client.exchange(clock)
        self._stack.push_async_callback(exchange.close)
        await exchange.open(self._path, {**self._body, "max_tokens": n_answer})
        return exchange


async def _whole(stream: AsyncStream) -> Answer:
    async with stream as pieces:
        async for _ in pieces:
            pass
        return stream.gathered.answer()


def _root(url: str) -> str:
    """The server's root of an address that may end in /v1. Raises ValueError."""
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ValueError("the base URL is http:// or https:// and a host, without a name or a password")
    return url.rstrip("/").removesuffix("/v1")
