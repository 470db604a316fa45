"""The client for ordinary code: the asyncio one, on a thread of its own, so that every wait has its exact end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .aio import AsyncClient, AsyncStream
from .answers import Answer, Gathered, Piece
from .asking import Message, Options
from .errors import Closed
from .limits import LIMITS, Limits

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")


class _Loop:
    """An event loop on a thread, with the client that lives on it. It does not outlive a fork."""

    def __init__(self, client: AsyncClient) -> None:
        self.pid, self.client = os.getpid(), client
        self._lock, self._closed = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quantplan-client", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """The work's result. Leaving early, as by Ctrl-C, cancels the work. Raises Closed."""
        with self._lock:  # what is begun before the end is ended by it, and nothing is begun after
            if self._closed:
                raise Closed
            future = self._begin(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed from None  # who closes the client cancels what runs on it
        except BaseException:
            future.cancel()
            raise

    def _begin(self, work: Callable[[], Awaitable[T]]) -> concurrent.futures.Future[T]:
        async def whole() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(whole(), self._loop)

    def close(self) -> None:
        with self._lock:
            done, self._closed = self._closed, True
        if not done and self.pid == os.getpid():
            self._begin(self._end).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()


class Client:
    """Talks to the planned server: as many requests at once as it has slots, the others wait. Threads may share it.

    `api_key` is sent as a bearer token. `base_url` is the server's root, with or without /v1.
    """

    def __init__(
        self, *, base_url: str | None = None, api_key: str | None = None, limits: Limits = LIMITS,
        verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        self.limits = limits
        self._make: Callable[[], AsyncClient] = lambda: AsyncClient(
            base_url=base_url, api_key=api_key, limits=limits, verify=verify
        )
        self._lock = threading.Lock()
        self._closed = False
        self._on: _Loop | None = _Loop(self._make())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every answer that still runs, and the thread."""
        with self._lock:
            loop, self._on, self._closed = self._on, None, True
        if loop is not None:
            loop.close()

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Answer:
        """The whole answer to a chat. It is streamed from the server, so that a lost connection is seen at once."""
        return self._run(lambda client: client.chat(messages, **options))

    def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """The whole continuation of a text."""
        return self._run(lambda client: client.complete(prompt, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Stream:
        """`with client.stream_chat(…) as pieces: for piece in pieces: …`; leaving the block ends the answer."""
        loop = self._loop()
        return Stream(loop, loop.client.stream_chat(messages, **options))

    def stream_complete(self, prompt: str, **options: Unpack[Options]) -> Stream:
        loop = self._loop()
        return Stream(loop, loop.client.stream_complete(prompt, **options))

    def count_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> int | None:
        """Tokens of a chat's prompt, template included, as the server counts them; None where it does not count."""
        return self._run(lambda client: client.count_chat(messages, **options))

    def count_text(self, text: str) -> int | None:
        """Tokens of a text, as the server counts them for a completion."""
        return self._run(lambda client: client.count_text(text))

    def embed(self, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        """A vector for each text, in their order."""
        return self._run(lambda client: client.embed(texts))

    def _run(self, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
        loop = self._loop()
        return loop.run(lambda: work(loop.client))

    def _loop(self) -> _Loop:
        with self._lock:
            if self._closed:
                raise Closed
            if self._on is None or self._on.pid != os.getpid():
                self._on = _Loop(self._make())
            return self._on


class Stream:
    """An answer's pieces. Nothing is sent before the first is asked for."""

    def __init__(self, loop: _Loop, stream: AsyncStream) -> None:
        self._loop, self._stream = loop, stream

    @property
    def gathered(self) -> Gathered:
        """What has come so far."""
        return self._stream.gathered

    def __enter__(self) -> Self:
        self._loop.run(self._stream.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer, from any thread: its connection is closed and the server stops generating."""
        with contextlib.suppress(Closed):  # the client was closed before, and its answers with it
            self._loop.run(self._stream.aclose)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        piece = self._loop.run(self._next)
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> Piece | None:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            return None
