"""A memory limit for one process, where cgroup v2 lets this user make a group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class Group:
    """A group of its own, or the reason why there is none."""

    def __init__(self, folder: Path | None, limit_bytes: int, why: str = "") -> None:
        self.folder, self.limit_bytes, self.why = folder, limit_bytes, why

    def admit(self, pid: int) -> int | None:
        """Moves a process into the group: its limit in bytes, or None where that is not allowed."""
        if self.folder is None:
            return None
        try:
            (self.folder / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            self.why = error.strerror or str(error)
            return None
        return self.limit_bytes


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[Group]:
    """A group with that memory limit for the length of a `with`."""
    folder, why = _make(limit_bytes)
    try:
        yield Group(folder, limit_bytes, why)
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(limit_bytes: int) -> tuple[Path | None, str]:
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = _ROOT / own[3:].strip().lstrip("/") / f"quantplan-{os.getpid()}"
        folder.mkdir()
    except (OSError, StopIteration) as error:
        return None, getattr(error, "strerror", None) or "this host has no cgroup v2"
    try:
        (folder / "memory.max").write_text(str(limit_bytes))
    except OSError as error:
        folder.rmdir()
        return None, error.strerror or str(error)
    return folder, ""
