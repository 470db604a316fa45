"""A remote file as a byte source: few HTTP range requests, and hardly a byte more than the header."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from quantplan.errors import BadModelFile, HubUnreachable
from quantplan.units import KIB, MIB

MAX_OVERSHOOT_BYTES = MIB
SHARD_OVERSHOOT_BYTES = 64 * KIB  # for the shards after the first: they hold tensors only, some 60 bytes each
MAX_RANGE_REQUESTS = 4  # beside them one answer that redirects and one listing of the repository: 6 in all
MAX_BROKEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeAnswer:
    """An open answer to a range request: pieces of its body as they arrive, and the whole file's size if told.
    `is_whole`: the server does not serve ranges and sends the whole file."""

    chunks: Iterator[bytes]
    file_bytes: int | None
    is_whole: bool = False


# (start, end) -> the open answer; end is exclusive, None asks for all that follows (closing it early stops it)
OpenRange = Callable[[int, int | None], AbstractContextManager[RangeAnswer]]


class RangeSource:
    """A ByteSource over range requests. Use it in a `with` block.

    A request asks for what the reader surely needs and at most 1 MiB more, so that no more than that is ever asked
    in vain. What a header is sure to need is only a lower bound (every token of a vocabulary takes 8 bytes and its
    text), so a large header takes several; the last one allowed is open-ended and closed when the header has ended.
    """

    def __init__(
        self,
        name: str,
        open_range: OpenRange,
        *,
        size: int | None = None,
        overshoot_bytes: int = MAX_OVERSHOOT_BYTES,
    ) -> None:
        self.name, self.size = name, size
        self._overshoot_bytes = overshoot_bytes
        self.n_requests = self.n_bytes = 0
        self._open_range = open_range
        self._stack = ExitStack()
        self._chunks: Iterator[bytes] = iter(())
        self._at, self._end, self._broken = 0, 0, 0

    def __enter__(self) -> RangeSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def read(self, offset: int, at_least: int, *, certain: int) -> bytes:
        """At least `at_least` bytes at `offset`, fewer at the end of the file; whatever has arrived beyond them too."""
        if not self._at <= offset < self._end:
            self._open(offset, certain)
        pieces, have = [], 0
        while have < at_least:
            piece = self._next()
            if not piece:
                if self.size is not None and self._at >= self.size:
                    break
                self._open(max(self._at, offset), max(certain - have, at_least - have))
                continue
            skipped = max(0, min(len(piece), offset - (self._at - len(piece))))
            pieces.append(piece[skipped:])
            have += len(piece) - skipped
        return b"".join(pieces)

    def _open(self, start: int, certain: int) -> None:
        if self.size is not None and start >= self.size:
            raise BadModelFile(path=self.name, why="the file ends", offset=start)
        self._stack.close()
        self._stack = ExitStack()
        last = self.n_requests >= MAX_RANGE_REQUESTS - 1
        end = None if last else start + certain + self._overshoot_bytes - 1
        if end is not None and self.size is not None:
            end = min(end, self.size)
        self.n_requests += 1
        if self.n_requests > MAX_RANGE_REQUESTS + MAX_BROKEN:
            raise HubUnreachable(url=self.name, why="the answers keep ending early")
        answer = self._stack.enter_context(self._open_range(start, end))
        if answer.file_bytes is not None:
            if self.size is not None and answer.file_bytes != self.size:
                why = f"its size changed from {self.size:,} to {answer.file_bytes:,} bytes while it was read"
                raise BadModelFile(path=self.name, why=why)
            self.size = answer.file_bytes
        self._chunks, self._at = answer.chunks, start
        end = None if answer.is_whole else end
        self._end = min(x for x in (end, self.size, 2**63) if x is not None)

    def _next(self) -> bytes:
        """The next piece of the open answer, b"" at its end. A broken connection ends it, at most MAX_BROKEN times."""
        try:
            piece = next(self._chunks, b"")
        except HubUnreachable:
            self._broken += 1
            if self._broken > MAX_BROKEN:
                raise
            piece = b""
        if not piece:
            if self.size is None and self._at < self._end:
                self.size = self._at  # the server did not tell it, and gave less than asked
            self._end = self._at
        self._at += len(piece)
        self.n_bytes += len(piece)
        return piece
