"""RAM bandwidth in a fifth of a second, on a host that may be busy: good enough to plan with.

Every engine thread reads a buffer of its own, and is timed by the processor time it got: what other programs take of
the cores does not count, what they take of the memory does.
"""

from __future__ import annotations

import statistics
import threading
import time

from quantplan.hardware.facts import CpuFacts, RamFacts
from quantplan.hardware.measure import CannotMeasure, Measured
from quantplan.units import MIB

QUICK = "ram_quick"  # the name the figure is kept under: a real measurement ("ram_read") comes before it
_SECONDS = 0.12
_BUFFER_BYTES = 96 * MIB
_MOST_BYTES = 1024 * MIB


def measure_ram_quickly(cpu: CpuFacts, ram: RamFacts) -> Measured:
    """Bytes read a second by all engine threads together, the sum of each one's median pass: in its best pass the
    others stood still. Raises CannotMeasure where there is not the memory for it."""
    n_threads = max(cpu.n_threads, 1)
    n_bytes = min(_BUFFER_BYTES, _MOST_BYTES // n_threads // MIB * MIB)
    if n_bytes < 16 * MIB or n_bytes * n_threads * 2 > ram.available_bytes:
        raise CannotMeasure(what="RAM bandwidth", why=f"needs {2 * n_bytes * n_threads:,} bytes")
    rates: list[list[float]] = [[] for _ in range(n_threads)]
    gate = threading.Barrier(n_threads)
    threads = [threading.Thread(target=_read, args=(gate, own, n_bytes), daemon=True) for own in rates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = int(sum(statistics.median(own) for own in rates))
    return Measured(
        what=QUICK, bytes_per_s=together, median_bytes_per_s=together, spread=0.0,
        n_runs=min(len(own) for own in rates), measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        how=f"a sum by processor time, {n_threads} threads, {n_bytes * n_threads // MIB} MiB",
    )  # fmt: skip


def _read(gate: threading.Barrier, rates: list[float], n_bytes: int) -> None:
    """Reads until the time is up; one rate a pass."""
    import numpy

    values = numpy.ones(n_bytes // 8, dtype=numpy.int64)  # touched here: it lies on this thread's NUMA node
    gate.wait()
    until = time.perf_counter() + _SECONDS
    while not rates or time.perf_counter() < until:
        began = time.thread_time()
        values.sum()
        rates.append(n_bytes / max(time.thread_time() - began, 1e-9))
