"""A file into an artifact's folder without copying it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

_WHY = {
    errno.EXDEV: "it lies on another filesystem",
    errno.EPERM: "the system allows no second name for a file of another user",
    errno.EACCES: "the system allows no second name for a file of another user",
    errno.EMLINK: "it has too many names already",
    errno.ENOTSUP: "the filesystem has no hard links",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """How a file was linked: a hard link shares the content whatever its other owner deletes; a symbolic one breaks
    when the file it names goes."""

    kind: str  # hardlink | symlink
    why: str

    @property
    def text(self) -> str:
        return f"{'hard' if self.kind == 'hardlink' else 'symbolic'} link ({self.why})"


def link_file(source: Path, target: Path) -> Linked:
    """A hard link where the system allows one, else a symbolic one."""
    real = source.resolve(strict=True)
    try:
        os.link(real, target)
        return Linked(kind="hardlink", why="nothing is copied, and it stays when the other holder deletes its own")
    except OSError as error:
        why = _WHY.get(error.errno or 0)
        if why is None:
            raise
        target.symlink_to(real)
        return Linked(kind="symlink", why=why)
