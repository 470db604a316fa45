"""Bandwidth as it is, on request: RAM by all threads at once, in seconds; and what was measured, kept per machine.

No compiled code of ours: numpy's loops, which are written for each CPU and hold no interpreter lock while they run.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from quantplan.errors import QuantplanError
from quantplan.hardware.facts import CpuFacts, HostFacts, RamFacts
from quantplan.places import cache_folder
from quantplan.units import MIB, pad

_RAM_SECONDS = 2.0
_LEAST_BUFFERS_BYTES = 256 * MIB
_MOST_PASSES = 400
_PASS_SECONDS = 0.1  # long beside the millisecond in which the interpreter wakes its threads one after the other


class CannotMeasure(QuantplanError):
    """A measurement that this host does not allow."""

    def __init__(self, *, what: str, why: str) -> None:
        super().__init__(f"{what} cannot be measured: {why}")
        self.what, self.why = what, why


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One bandwidth. `bytes_per_s` is the best of `n_runs` of RAM, as STREAM counts, and what all runs of a disk took
    together; `median_bytes_per_s` and the relative `spread` (from the first to the last quartile) say how steady the
    host was."""

    what: str
    bytes_per_s: int
    median_bytes_per_s: int
    spread: float
    n_runs: int
    measured_at: str
    how: str


def summary(what: str, rates: Sequence[float], *, how: str) -> Measured:
    """The figure of several runs. Raises CannotMeasure when there is none."""
    if not rates:
        raise CannotMeasure(what=what, why="no run finished")
    median = statistics.median(rates)
    quartiles = statistics.quantiles(rates, n=4) if len(rates) > 1 else [median] * 3
    return Measured(
        what=what,
        bytes_per_s=int(max(rates)),
        median_bytes_per_s=int(median),
        spread=round((quartiles[2] - quartiles[0]) / median, 4),
        n_runs=len(rates),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        how=how,
    )


# ---- RAM


class RamAccess(Enum):
    """What is done to the memory. COPY reads and writes, and both are counted, as STREAM's Copy does; READ is what
    decoding does to weights. The value is the name the figure is kept under."""

    COPY = "ram"
    READ = "ram_read"


def measure_ram(
    cpu: CpuFacts, ram: RamFacts, *, seconds: float = _RAM_SECONDS, access: RamAccess = RamAccess.COPY
) -> Measured:
    """Bytes moved between RAM and all engine threads at once a second: those read plus those written of a copy, or
    those read (a sum), over buffers of at least four times the last-level cache. Raises CannotMeasure where there is
    not the memory for that."""
    n_threads = cpu.n_threads
    wanted = max(4 * (cpu.cache_bytes or 32 * MIB), _LEAST_BUFFERS_BYTES)
    if wanted * 2 > ram.available_bytes:
        raise CannotMeasure(what="RAM bandwidth", why=f"needs {wanted:,} bytes, {ram.available_bytes:,} are available")
    each = pad(wanted // (2 * n_threads), MIB)
    passes = _passes(seconds, n_threads=n_threads, n_bytes=each, access=access)
    rates = [rate_together(copies) for copies in passes]
    called = "copy" if access is RamAccess.COPY else "sum"
    return summary(access.value, rates, how=f"{called}, {n_threads} threads, {each * 2 * n_threads // MIB} MiB")


@dataclass(frozen=True, slots=True)
class Copy:
    """One finished piece of work: from when to when, and the bytes it read or wrote."""

    began: float
    ended: float
    n_bytes: int


class Buffer:
    """Anonymous memory with its address. Whoever uses it touches it first: then it lies on that thread's NUMA node."""

    def __init__(self, n_bytes: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory would never get huge pages
        self.memory = mmap.mmap(-1, n_bytes, flags=private)
        self._view = (ctypes.c_char * n_bytes).from_buffer(self.memory)
        self.address = ctypes.addressof(self._view)


def _mover(access: RamAccess, n_bytes: int) -> Callable[[int, int], object]:
    """Moves all bytes of two buffers at these addresses. The copy is numpy's `invert`, a loop of vector loads and
    stores as STREAM's is: the C library's memcpy uses `rep movsb` or stores past the caches for sizes like these,
    which on an EPYC guest was a third slower than any loop."""
    import numpy

    def view(address: int) -> numpy.ndarray:
        return numpy.ctypeslib.as_array((ctypes.c_int64 * (n_bytes // 8)).from_address(address))

    if access is RamAccess.COPY:
        return lambda target, source: numpy.invert(view(source), out=view(target))
    return lambda first, second: (view(first).sum(), view(second).sum())


def _passes(seconds: float, *, n_threads: int, n_bytes: int, access: RamAccess) -> list[list[Copy]]:
    """What each thread moved in each pass. All start a pass together; the first pass warms up and says how many moves
    fill a pass."""
    move = _mover(access, n_bytes)
    pairs = [(Buffer(n_bytes), Buffer(n_bytes)) for _ in range(n_threads)]
    passes: list[list[Copy]] = [[] for _ in range(_MOST_PASSES)]
    until = time.perf_counter() + seconds
    gate = threading.Barrier(n_threads)

    def work(index: int) -> None:
        first, second = (buffer.address for buffer in pairs[index])
        for address in (first, second):
            ctypes.memset(address, 1, n_bytes)
        for number, copies in enumerate(passes):
            gate.wait()
            began = time.perf_counter()
            for _ in range(moves[-1]):
                move(first, second)
            copies.append(Copy(began, time.perf_counter(), 2 * n_bytes * moves[-1]))
            # decided between two gates, so that all see the same
            if gate.wait() == 0:
                stop.append(number >= 4 and time.perf_counter() > until)
                if number == 0:
                    moves.append(max(1, round(_PASS_SECONDS / max(copies[-1].ended - copies[-1].began, 1e-6))))
            gate.wait()
            if stop[-1]:
                return

    stop: list[bool] = []
    moves = [1]
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [copies for copies in passes[1:] if copies]  # the first pass warms up


def rate_together(copies: Sequence[Copy]) -> float:
    """Bytes a second from the last that began to the last that ended, as STREAM counts: one slow thread makes all slow.
    What the others moved before the last began is left out; the interpreter wakes threads one after the other."""
    start, end = max(copy.began for copy in copies), max(copy.ended for copy in copies)
    shares = (copy.n_bytes * max(copy.ended - start, 0) / (copy.ended - copy.began) for copy in copies)
    return sum(shares) / (end - start)


# ---- kept per machine


def measurements_file(host: HostFacts, *, folder: Path | None = None) -> Path:
    return (folder or cache_folder() / "measurements") / f"{host.fingerprint}.json"


def keep_measured(host: HostFacts, measured: Sequence[Measured], *, folder: Path | None = None) -> Path:
    """Adds measurements to the ones kept for this machine; a newer figure replaces the older."""
    path = measurements_file(host, folder=folder)
    kept = {item.what: item for item in (*read_measured(host, folder=folder), *measured)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(item) for item in kept.values()], indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_measured(host: HostFacts, *, folder: Path | None = None) -> tuple[Measured, ...]:
    """The measurements kept for this machine; none where there are none that can be read."""
    try:
        rows = json.loads(measurements_file(host, folder=folder).read_text(encoding="utf-8"))
        return tuple(Measured(**row) for row in rows)
    except (OSError, ValueError, TypeError):
        return ()


def with_measured(host: HostFacts, measured: Sequence[Measured]) -> HostFacts:
    """The host with measured bandwidths in place of unknown or nominal ones: `ram_read` (decoding only reads), else
    `ram`; `disk`; and a device's name."""
    figures = {item.what: item.bytes_per_s for item in measured}
    ram, disk = host.ram, host.disk
    rate = figures.get(RamAccess.READ.value, figures.get(RamAccess.COPY.value))
    if rate is not None:
        ram = replace(ram, bandwidth_bytes_per_s=rate)
    if disk is not None and "disk" in figures:
        disk = replace(disk, read_bytes_per_s=figures["disk"])
    gpus = tuple(
        replace(gpu, bandwidth_bytes_per_s=figures[gpu.name], bandwidth_source="measured")
        if gpu.name in figures
        else gpu
        for gpu in host.gpus
    )
    return replace(host, ram=ram, disk=disk, gpus=gpus)
