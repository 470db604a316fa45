"""Where what is scanned lies: a folder or a repository of the hub, as names, sizes and bytes by position."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from quantplan.errors import BadModelFile
from quantplan.units import MIB

if TYPE_CHECKING:
    from quantplan.model.gguf_header import GgufHeader
    from quantplan.model.hub import Hub
    from quantplan.model.hub_files import HubFiles

MAX_FILES = 20_000
BLOCK = 256 * 1024
MAX_FETCHED = 128 * MIB  # of one file of the hub: what a scan may ask for of what it does not keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file by its name with `/` between folders. `odd` says what else than a plain file it is."""

    name: str
    n_bytes: int | None
    is_executable: bool = False
    odd: str | None = None


class Files(Protocol):
    """What a scan asks of the place."""

    name: str

    def entries(self) -> Sequence[Entry]: ...

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """A whole small file. Raises BadModelFile where it is larger."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The file for reading at any place."""
        ...

    def gguf_header(self, name: str) -> GgufHeader: ...


class FolderOf:
    """A local folder. Links are looked at, never followed out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name or str(folder)

    def entries(self) -> Sequence[Entry]:
        found: list[Entry] = []
        root = self.folder.resolve()
        for at, folders, names in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if f not in (".git", ".cache") or at != str(self.folder))
            for name in sorted([*names, *(f for f in folders if (Path(at) / f).is_symlink())]):
                found.append(_entry(Path(at) / name, self.folder, root))
                if len(found) > MAX_FILES:
                    raise BadModelFile(path=self.folder, why=f"has more than {MAX_FILES:,} files")
        return found

    def read(self, name: str, *, max_bytes: int) -> bytes:
        from quantplan.model.checkpoint import read_small

        return read_small(self.folder / name, max_bytes=max_bytes)

    def open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb")

    def gguf_header(self, name: str) -> GgufHeader:
        from quantplan.model.gguf_header import read_gguf_header

        return read_gguf_header(self.folder / name)


def _entry(path: Path, folder: Path, root: Path) -> Entry:
    name = path.relative_to(folder).as_posix()
    try:
        told = path.lstat()
    except OSError as error:
        return Entry(name=name, n_bytes=None, odd=error.strerror or str(error))
    if stat.S_ISLNK(told.st_mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            return Entry(name=name, n_bytes=None, odd=f"a link that leads nowhere ({type(error).__name__})")
        if not (target.is_relative_to(root) or _is_store(path, target)):
            return Entry(name=name, n_bytes=None, odd=f"a link out of the folder, to {target}")
        told = target.stat()
        if target.is_dir():
            return Entry(name=name, n_bytes=None, odd="a link to a folder")
    if not stat.S_ISREG(told.st_mode):
        return Entry(name=name, n_bytes=None, odd="no regular file")
    return Entry(name=name, n_bytes=told.st_size, is_executable=bool(told.st_mode & 0o111))


def _is_store(path: Path, target: Path) -> bool:
    """Whether it is a blob of Hugging Face's own cache, whose snapshots are links, or a GGUF of an artifact."""
    return target.parent.name == "blobs" or path.suffix == ".gguf" == target.suffix


class RepositoryOf:
    """A repository of the hub at one commit, read by ranges: nothing is downloaded whole but small texts."""

    def __init__(self, hub: Hub, files: HubFiles) -> None:
        self._hub, self._files, self.repository = hub, files, files.repository
        self.name = files.repository.id

    def entries(self) -> Sequence[Entry]:
        odd = [Entry(name=n, n_bytes=None, odd="a name that leaves its folder") for n in self.repository.unsafe]
        return [*(Entry(name=f.name, n_bytes=f.n_bytes) for f in self.repository.files), *odd]

    def read(self, name: str, *, max_bytes: int) -> bytes:
        return self._files.read(name, max_bytes=max_bytes)

    def open(self, name: str) -> BinaryIO:
        size = self.repository.file(name).n_bytes
        if size is None:
            raise BadModelFile(path=f"{self.name}/{name}", why="the hub does not tell its size")
        ranges = self._hub.ranges(self.name, self.repository.commit, name)

        def fetch(start: int, end: int) -> bytes:
            from quantplan.model.hub_files import read_range

            return read_range(ranges, start, end)

        return io.BufferedReader(_Ranges(f"{self.name}/{name}", size, fetch), buffer_size=64 * 1024)

    def gguf_header(self, name: str) -> GgufHeader:
        return self._files.gguf_header(name)


class _Ranges(io.RawIOBase):
    """A remote file that can be read at any place, a block at a time; not more than MAX_FETCHED of it."""

    def __init__(self, name: str, size: int, fetch: object) -> None:
        self._name, self._size, self._fetch, self._at = name, size, fetch, 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._at >= self._size or not len(buffer):
            return 0
        number, inside = divmod(self._at, BLOCK)
        if number not in self._blocks:
            if len(self._blocks) * BLOCK >= MAX_FETCHED:
                raise BadModelFile(path=self._name, why=f"more than {MAX_FETCHED >> 20} MiB of it would be needed")
            start = number * BLOCK
            self._blocks[number] = self._fetch(start, min(start + BLOCK, self._size))  # type: ignore[operator]
        piece = self._blocks[number][inside : inside + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
