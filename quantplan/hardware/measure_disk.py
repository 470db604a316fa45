"""The disk's sequential read as it is, on request, past the page cache or through it cold. A few seconds."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from quantplan.hardware.measure import Buffer, CannotMeasure, Measured, summary
from quantplan.units import GIB, MIB

_SECONDS = 3.0
_BLOCK_BYTES = 4 * MIB
_FILE_BYTES = GIB


def measure_disk(
    folder: Path, *, seconds: float = _SECONDS, file_bytes: int = _FILE_BYTES, direct: bool = True
) -> Measured:
    """Bytes a second of a sequential read in `folder`, past the page cache (`direct`) or through it with a cold cache.

    Reads the largest model there that is big enough, else a file written for it and removed again. Raises
    CannotMeasure where neither is possible, and with `direct` where the file system refuses O_DIRECT."""
    own = _largest_model(folder, at_least=file_bytes)
    written = None if own else _write_file(folder, file_bytes)
    try:
        rates = _read_rates(own or written or folder, seconds=seconds, direct=direct)
    finally:
        if written is not None:
            written.unlink(missing_ok=True)
    how = f"{'O_DIRECT' if direct else 'buffered, cold'}, {_BLOCK_BYTES // MIB} MiB blocks"
    found = summary("disk" if direct else "disk_buffered", rates, how=how)
    return replace(found, bytes_per_s=int(statistics.harmonic_mean(rates)))


def _largest_model(folder: Path, *, at_least: int) -> Path | None:
    found = []
    for path in folder.glob("*.gguf"):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_blocks * 512 >= at_least:  # a file with holes reads from memory
            found.append((status.st_size, path))
    return max(found)[1] if found else None


def _write_file(folder: Path, n_bytes: int) -> Path:
    """A file of noise (some disks compress), written through to the disk."""
    usage = os.statvfs(folder)
    if usage.f_bavail * usage.f_frsize < 2 * n_bytes:
        raise CannotMeasure(what=f"the disk of {folder}", why=f"less than {2 * n_bytes:,} bytes are free")
    try:
        handle, name = tempfile.mkstemp(prefix=".quantplan-read-", dir=folder)
    except OSError as error:
        raise CannotMeasure(what=f"the disk of {folder}", why=error.strerror or str(error)) from None
    noise = os.urandom(_BLOCK_BYTES)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            for _ in range(n_bytes // len(noise)):
                file.write(noise)
            os.fsync(file.fileno())
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise CannotMeasure(what=f"the disk of {folder}", why=error.strerror or str(error)) from None
    return Path(name)


def _read_rates(path: Path, *, seconds: float, direct: bool) -> list[float]:
    """Bytes a second of each pass through the file, until the time is up; at least one pass. Each pass has a buffer of
    its own, as each program has: how its pages happen to lie decides how many requests a block takes (0.8 or 1.7 GB/s
    on one disk, for dd and fio as well; always 2 on huge pages, which the engine does not read into)."""
    if direct and not hasattr(os, "O_DIRECT"):
        raise CannotMeasure(what=str(path), why="this system has no O_DIRECT")
    rates: list[float] = []
    until = time.perf_counter() + seconds
    while not rates or time.perf_counter() < until:
        buffer = Buffer(_BLOCK_BYTES).memory
        try:
            file = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        except OSError as error:
            raise CannotMeasure(what=str(path), why=error.strerror or str(error)) from None
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            began, total = time.perf_counter(), 0
            while (got := os.readv(file, [buffer])) > 0:
                total += got
                if time.perf_counter() > until + seconds:
                    break  # a slow disk: what was read so far is enough
            rates.append(total / (time.perf_counter() - began))
        except OSError as error:
            raise CannotMeasure(what=str(path), why=error.strerror or str(error)) from None
        finally:
            os.close(file)
    return rates
