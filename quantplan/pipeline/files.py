"""Files and folders that steps make: hashed, synced and removed alike."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from quantplan.artifact.receipt import FileEntry, sha256_of, sync_folder


def members(path: Path) -> tuple[Path, ...]:
    """The file itself, or the files of a folder by name."""
    return tuple(sorted(path.iterdir())) if path.is_dir() else (path,)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder (of a link there its own)."""
    if path.is_dir():
        return sum(member.lstat().st_size for member in members(path))
    return path.stat().st_size


def hash_of(path: Path) -> str:
    """sha256 of a file; of a folder that of its list of names and hashes."""
    if not path.is_dir():
        return sha256_of(path)
    return hash_of_list([FileEntry(name=m.name, sha256=sha256_of(m), bytes=0) for m in members(path)])


def hash_of_list(files: Sequence[FileEntry]) -> str:
    """sha256 over names and hashes, in the order of the names."""
    listed = "".join(f"{one.sha256}  {one.name}\n" for one in sorted(files, key=lambda one: one.name))
    return hashlib.sha256(listed.encode()).hexdigest()


def remove(path: Path) -> None:
    """Removes a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes sure that the content is on the disk before its name is."""
    for member in members(path):
        with member.open("rb") as file:
            os.fsync(file.fileno())
    if path.is_dir():
        sync_folder(path)


def move_into_place(partial: Path, final: Path, *, lasting: bool = True) -> None:
    """Content on the disk, then the name, then the name on the disk. What need not outlast a power loss is renamed
    only: gigabytes that are deleted a minute later then never reach the disk at all."""
    if lasting:
        sync(partial)
    partial.replace(final)
    if lasting:
        sync_folder(final.parent)


@cache
def boot_id() -> str | None:
    """Which start of this machine it is, or None where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
