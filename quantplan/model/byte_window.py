"""Reading a header front to back through a small window, from a file or from anything that gives byte ranges."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol

from quantplan.errors import BadModelFile

WINDOW_BYTES = 256 * 1024


class ByteSource(Protocol):
    """Bytes by position. `size` is the whole length, None while unknown (it may become known by reading)."""

    name: str
    size: int | None

    def read(self, offset: int, at_least: int, *, certain: int) -> bytes:
        """At least `at_least` bytes from `offset` on, fewer only at the end of the file. `certain` is how many
        more bytes the reader surely needs: what a remote source may ask for without waste."""
        ...


class FileSource:
    """A local file, read in pieces of WINDOW_BYTES. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block us
        except OSError as error:
            raise BadModelFile(path=path, why=error.strerror or str(error)) from None
        except ValueError as error:  # a NUL in the name
            raise BadModelFile(path=path, why=str(error)) from None
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._fd)
            raise BadModelFile(path=path, why="is not a regular file")
        self.size: int | None = found.st_size

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, offset: int, at_least: int, *, certain: int) -> bytes:
        try:
            return os.pread(self._fd, max(at_least, WINDOW_BYTES), offset)
        except OSError as error:
            raise BadModelFile(path=self.name, why=error.strerror or str(error), offset=offset) from None


class Window:
    """A cursor over a source that holds one piece at a time.

    `what` names the key or tensor being read; every refusal starts with it and ends with the offset.
    `certain_after` is how many bytes surely follow what is being read now.
    """

    __slots__ = ("_base", "_buffer", "_limit", "_pos", "_source", "certain_after", "what")

    def __init__(self, source: ByteSource, *, limit: int) -> None:
        self._source, self._limit = source, limit
        self._buffer, self._base, self._pos = b"", 0, 0
        self.what, self.certain_after = "header", 0

    @property
    def offset(self) -> int:
        return self._base + self._pos

    def fail(self, why: str, *, rule: str, offset: int | None = None) -> NoReturn:
        at = self.offset if offset is None else offset
        raise BadModelFile(
            path=self._source.name, why=f"{self.what}: {why}", offset=at, rule=rule, where=self.what
        )  # fmt: skip

    def check_remaining(self, n_bytes: int, why: str, *, offset: int, rule: str = "gguf-length") -> None:
        """Refuses a declared length that the file, or any sane header, cannot hold."""
        end, size = self.offset + n_bytes, self._source.size
        if size is not None and end > size:
            self.fail(f"{why}, but the file has {max(0, size - self.offset):,} bytes left", rule=rule, offset=offset)
        if end > self._limit:
            self.fail(
                f"{why}, which makes a header of more than {self._limit >> 20} MiB",
                rule="gguf-too-large",
                offset=offset,
            )

    def take(self, n_bytes: int) -> bytes:
        """The next n_bytes. Callers check a declared length first: this allocates it."""
        pos = self._pos
        if pos + n_bytes > len(self._buffer):
            self._fill(n_bytes, certain=n_bytes)
            pos = self._pos
        self._pos = pos + n_bytes
        return self._buffer[pos : pos + n_bytes]

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        pos = self._pos
        if pos + layout.size > len(self._buffer):
            self._fill(layout.size, certain=layout.size)
            pos = self._pos
        self._pos = pos + layout.size
        return layout.unpack_from(self._buffer, pos)

    def skip(self, n_bytes: int) -> None:
        """Moves on without reading what is not in the window."""
        self._pos += n_bytes
        if self._pos > len(self._buffer):
            self._buffer, self._base, self._pos = b"", self._base + self._pos, 0

    def skip_strings(self, n: int) -> None:
        """Moves over n length-prefixed strings without building them: about 80 ns each.

        Running over the window's end is left to unpack_from, which checks it anyway: a test of our own in this loop
        would cost a third of its time.
        """
        unpack = struct.Struct("<Q").unpack_from
        while n:
            buffer, pos, left = self._buffer, self._pos, n
            try:
                for left in range(n, 0, -1):  # noqa: B007  read after the loop ran out of the window
                    pos += 8 + unpack(buffer, pos)[0]
                left = 0
            except (struct.error, OverflowError, IndexError, ValueError):
                pass
            if pos > len(buffer):
                self._check_jump(pos)
            n = left
            self.skip(pos - self._pos)
            if n:
                self._fill(8, certain=8 * n)

    def _check_jump(self, pos: int) -> None:
        """A string ended beyond the window: is that still inside the file? Finds the culprit only if not."""
        end, size = self._base + pos, self._source.size
        if (size is None or end <= size) and end <= self._limit:
            return
        buffer, at = self._buffer, self._pos
        while True:
            (length,) = struct.unpack_from("<Q", buffer, at)
            if at + 8 + length > len(buffer):
                self._pos = at + 8
                self.check_remaining(length, f"a string of {length:,} bytes", offset=self._base + at)
                self.fail(
                    f"a string of {length:,} bytes", rule="gguf-length", offset=self._base + at
                )  # only where the limit just fits
            at += 8 + length

    def _fill(self, n_bytes: int, *, certain: int) -> None:
        """Makes n_bytes available at the cursor."""
        offset, kept = self.offset, self._buffer[self._pos :]
        self.check_remaining(n_bytes, f"needs {n_bytes:,} bytes", offset=offset, rule="gguf-truncated")
        missing = n_bytes - len(kept)
        certain = max(missing, certain - len(kept) + self.certain_after)
        self._buffer = kept + self._source.read(offset + len(kept), missing, certain=certain)
        self._base, self._pos = offset, 0
        if len(self._buffer) < n_bytes:
            self.fail(f"needs {n_bytes:,} bytes, but the file ends", rule="gguf-truncated", offset=offset)
