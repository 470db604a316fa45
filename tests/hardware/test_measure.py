"""Bandwidth against a STREAM-like loop in C and against dd, taken in turns in the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from quantplan.hardware.detect import detect_host
from quantplan.hardware.facts import CpuFacts, GpuFacts, HostFacts, RamFacts
from quantplan.hardware.host import host_for
from quantplan.hardware.measure import (
    CannotMeasure,
    Copy,
    Measured,
    keep_measured,
    measure_disk,
    measure_ram,
    rate_together,
    read_measured,
    summary,
    with_measured,
)
from quantplan.units import GIB, MIB

STREAM_COPY = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static size_t n; static int threads; static double *a, *c; static double best, until; static pthread_barrier_t gate;
static double began[1024], ended[1024]; static volatile int stop;
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void *work(void *p) {
  size_t id = (size_t)p, from = n * id / threads, to = n * (id + 1) / threads;
  for (size_t i = from; i < to; i++) { a[i] = 1; c[i] = 0; }
  while (!stop) {
    pthread_barrier_wait(&gate);
    began[id] = now();
    for (size_t i = from; i < to; i++) c[i] = a[i];
    ended[id] = now();
    pthread_barrier_wait(&gate);
    if (id == 0) {
      double first = began[0], last = ended[0];
      for (int t = 1; t < threads; t++) {
        if (began[t] < first) first = began[t];
        if (ended[t] > last) last = ended[t];
      }
      double rate = 2.0 * n * sizeof(double) / (last - first);
      if (rate > best) best = rate;
      stop = last > until;
    }
    pthread_barrier_wait(&gate);
  }
  return NULL;
}
int main(int argc, char **argv) {
  pthread_t handles[1024];
  threads = atoi(argv[1]); n = (size_t)atol(argv[2]) / sizeof(double);
  a = malloc(n * sizeof(double)); c = malloc(n * sizeof(double));
  pthread_barrier_init(&gate, NULL, threads);
  until = now() + 2;
  for (long i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, (void *)i);
  for (long i = 0; i < threads; i++) pthread_join(handles[i], NULL);
  printf("%.0f\n", best);
  return argc != 3;
}
"""


def turns(ours: Callable[[], float], theirs: Callable[[], float], *, tolerance: float, most: int = 16) -> None:
    """Takes both in turns until they agree, at most `most` times: by the best of each side (a neighbour's load only
    ever takes away), or by the middle of the turns' ratios (where the load changes from turn to turn)."""
    pairs: list[tuple[float, float]] = []
    off = 1.0
    while len(pairs) < most and (len(pairs) < 2 or off > tolerance):
        pairs.append((ours(), theirs()))
        best = max(first for first, _ in pairs) / max(second for _, second in pairs)
        middle = statistics.median(first / second for first, second in pairs)
        off = min(abs(best - 1), abs(middle - 1)) if len(pairs) >= 5 else abs(best - 1)
    assert off <= tolerance, pairs


def test_ram_agrees_with_a_stream_copy_in_c(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed to check the measurement"
    (tmp_path / "stream.c").write_text(STREAM_COPY)
    program = tmp_path / "stream"
    subprocess.run([compiler, "-O2", "-pthread", str(tmp_path / "stream.c"), "-o", str(program)], check=True)
    host = detect_host()
    each_array = max(4 * (host.cpu.cache_bytes or 32 * MIB), 256 * MIB) // 2

    def stream() -> float:
        argv = [str(program), str(host.cpu.n_threads), str(each_array)]
        return float(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout)

    turns(lambda: measure_ram(host.cpu, host.ram).bytes_per_s, stream, tolerance=0.15)


def test_disk_agrees_with_dd_past_the_page_cache(tmp_path: Path) -> None:
    folder = Path(__file__).parent  # a real disk: the temporary folder may be memory
    model = folder / f".disk-test-{os.getpid()}.gguf"
    with model.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(4 * MIB))
        os.fsync(file.fileno())

    def dd() -> float:
        argv = ["dd", f"if={model}", "of=/dev/null", "bs=4M", "iflag=direct"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}, timeout=120).stderr
        seconds = float(said.rsplit("copied, ", 1)[1].split(" s")[0])
        return 64 * 4 * MIB / seconds

    try:
        try:
            measure_disk(folder, seconds=0.1, file_bytes=64 * MIB)
        except CannotMeasure as error:  # a file system without O_DIRECT: said, not guessed
            assert "Invalid argument" in str(error)
            return
        turns(
            lambda: measure_disk(folder, seconds=1, file_bytes=64 * MIB).bytes_per_s,
            lambda: max(dd() for _ in range(3)),
            tolerance=0.15,
        )
    finally:
        model.unlink()


def test_a_written_file_is_removed_again(tmp_path: Path) -> None:
    measured = measure_disk(tmp_path, seconds=0.1, file_bytes=8 * MIB, direct=False)
    assert measured.what == "disk_buffered" and measured.n_runs >= 1 and measured.bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    cpu = CpuFacts(model=None, n_physical=1, n_logical=1, n_threads=1)
    with pytest.raises(CannotMeasure, match="RAM bandwidth cannot be measured: needs 268,435,456 bytes, 1,000 are"):
        measure_ram(cpu, RamFacts(total_bytes=GIB, available_bytes=1000))
    with pytest.raises(CannotMeasure, match=r"less than .* bytes are free"):
        measure_disk(tmp_path, file_bytes=1 << 60)


def test_summary_is_the_best_with_its_spread() -> None:
    found = summary("ram", [100.0, 90.0, 80.0, 110.0], how="test")
    assert (found.bytes_per_s, found.median_bytes_per_s, found.n_runs) == (110, 95, 4)
    assert found.spread == round((107.5 - 82.5) / 95, 4)
    with pytest.raises(CannotMeasure):
        summary("ram", [], how="test")


def test_the_rate_is_that_of_all_together() -> None:
    """Two threads: the second begins late and ends early; both move 100 bytes a second while they run."""
    assert rate_together([Copy(0.0, 2.0, 200), Copy(0.5, 1.75, 125)]) == pytest.approx(200.0)
    assert rate_together([Copy(0.0, 2.0, 200), Copy(1.5, 3.5, 200)]) is None


def test_measurements_are_kept_per_machine(tmp_path: Path) -> None:
    gpu = GpuFacts(name="CUDA0", product="X", vendor="nvidia", total_bytes=GIB, free_bytes=GIB)
    host = HostFacts(
        os="Linux",
        cpu=CpuFacts(model="A", n_physical=1, n_logical=1, n_threads=1),
        ram=RamFacts(total_bytes=GIB, available_bytes=GIB),
        gpus=(gpu,),
    )

    def measured(what: str, rate: int) -> Measured:
        return summary(what, [float(rate)], how="test")

    assert read_measured(host, folder=tmp_path) == ()
    keep_measured(host, [measured("ram", 10), measured("CUDA0", 20)], folder=tmp_path)
    keep_measured(host, [measured("ram", 30)], folder=tmp_path)
    kept = read_measured(host, folder=tmp_path)
    assert {item.what: item.bytes_per_s for item in kept} == {"ram": 30, "CUDA0": 20}
    better = with_measured(host, kept)
    assert better.ram.bandwidth_bytes_per_s == 30
    assert (better.gpus[0].bandwidth_bytes_per_s, better.gpus[0].bandwidth_source) == (20, "measured")
    assert better.fingerprint == host.fingerprint


def test_the_host_of_a_plan_has_what_was_measured(tmp_path: Path) -> None:
    assert host_for("rtx4070+64GB").profile == "rtx4070+64GB"
    here = host_for(None)
    assert here.fingerprint == detect_host().fingerprint
