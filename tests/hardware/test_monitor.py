"""Samples against a host whose counters the test turns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantplan.hardware.monitor import PlannedBytes, watch
from quantplan.units import GIB, MIB

PAGE = os.sysconf("SC_PAGE_SIZE")


class Host:
    """A folder whose counters move on at every sleep."""

    def __init__(self, root: Path) -> None:
        self.root, self.step = root, 0
        (root / "proc/pressure").mkdir(parents=True)
        self.write()

    def write(self) -> None:
        available = 12 * GIB // 1024 - self.step * 1024
        proc = self.root / "proc"
        proc.joinpath("meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {available} kB\n")
        proc.joinpath("vmstat").write_text(f"pswpin {100 * self.step}\npswpout {7 + self.step}\n")
        total = 250_000 * self.step
        proc.joinpath("pressure/io").write_text(f"some avg10=0.0 avg60=0.0 avg300=0.0 total={total}\nfull total=0\n")

    def sleep(self, seconds: float) -> None:
        assert seconds == 0.5
        self.step += 1
        self.write()


def test_samples_without_a_gpu(tmp_path: Path) -> None:
    host = Host(tmp_path)
    clock = itertools.count(100, 0.5)
    planned = PlannedBytes(host_bytes=3 * GIB)
    first, second, third = watch(
        nvml=None, root=tmp_path, planned=planned, interval_s=0.5, count=3, clock=lambda: next(clock), sleep=host.sleep
    )
    assert (first.used_bytes, first.available_bytes, first.over_plan_bytes) == (4 * GIB, 12 * GIB, GIB)
    assert (first.swap_in_bytes_per_s, first.disk_wait, first.devices) == (None, None, ())
    assert second.swap_in_bytes_per_s == third.swap_in_bytes_per_s == 200 * PAGE
    assert second.swap_out_bytes_per_s == 2 * PAGE
    assert second.disk_wait == 0.5
    assert second.memory_wait is None
    assert third.used_bytes == 4 * GIB + 2 * MIB


def test_devices_against_the_plan(tmp_path: Path, hosts_folder: Path, nvml_of: Callable[[str], Any]) -> None:
    planned = PlannedBytes(device_bytes={"CUDA1": 10 * MIB})
    (sample,) = watch(nvml=nvml_of("dual-3090"), root=hosts_folder / "dual-3090/root", planned=planned, count=1)
    first, second = sample.devices
    assert (first.name, first.used_bytes, first.total_bytes) == ("CUDA0", 3 * MIB, 24576 * MIB)
    assert (first.temperature_c, first.power_w, first.over_plan_bytes) == (35, 10.61, None)
    assert second.over_plan_bytes == -7 * MIB


def test_a_driver_that_fails_leaves_the_host(recorded: Any, tmp_path: Path) -> None:
    Host(tmp_path)
    broken = recorded({"nvmlDeviceGetCount()": {"refused": 999, "text": "Unknown Error"}})
    (sample,) = watch(nvml=broken, root=tmp_path, count=1)
    assert sample.devices == () and sample.used_bytes == 4 * GIB
