"""One build at a time in a work folder. The lock is the kernel's: it ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def lock_file(folder: Path) -> Path:
    """Beside the work folder, and never removed: whoever waits for it waits for this very file."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[int | None], None]) -> Iterator[None]:
    """Holds the lock of a work folder; calls `waiting` with the other process's id before it waits for another."""
    path = lock_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(_holder(path))
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(folder: Path) -> int | None:
    """The id of the process that builds in a work folder now, or None."""
    path = lock_file(folder)
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    except OSError:
        pass
    return None


def _holder(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
