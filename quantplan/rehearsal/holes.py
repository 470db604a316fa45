"""Whether a folder's filesystem keeps holes, and leaves them holes when they are read: tried, not guessed by name."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from quantplan.errors import HolesFilled
from quantplan.units import MIB

_PROBE_BYTES = 16 * MIB
_BLOCK = 512  # st_blocks counts these


def require_holes(folder: Path) -> None:
    """Raises HolesFilled when a hole in this folder takes room once written or read. Costs 16 MiB of reading."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".quantplan-hole-") as file:
        file.truncate(_PROBE_BYTES)
        os.fsync(file.fileno())
        _check(folder, file.fileno(), "written")
        with mmap.mmap(file.fileno(), _PROBE_BYTES, prot=mmap.PROT_READ) as mapped:  # as the engine reads it
            for offset in range(0, _PROBE_BYTES, mmap.PAGESIZE):
                mapped[offset]
        _check(folder, file.fileno(), "read")


def _check(folder: Path, descriptor: int, when: str) -> None:
    used = os.fstat(descriptor).st_blocks * _BLOCK
    if used > MIB:
        raise HolesFilled(path=folder, used_bytes=used, probe_bytes=_PROBE_BYTES, when=when)


def holes_folder() -> Path:
    """A folder for weightless models: the cache, which lies on a disk more often than the temporary folder."""
    from quantplan.places import cache_folder

    folder = cache_folder() / "weightless"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_leftovers(folder: Path) -> None:
    """Removes the weightless models of processes that are gone: they were killed before they could."""
    for path in folder.glob("*.gguf"):
        pid = path.name.partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)
