"""The brief measurement of RAM: a figure that can be, and a refusal where there is no room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantplan.hardware.facts import CpuFacts, RamFacts
from quantplan.hardware.measure import CannotMeasure
from quantplan.hardware.measure_quick import QUICK, measure_ram_quickly
from quantplan.units import GIB

CPU = CpuFacts(model=None, n_physical=2, n_logical=2, n_threads=2)
RAM = RamFacts(total_bytes=8 * GIB, available_bytes=4 * GIB)


def test_the_figure_is_one_of_memory() -> None:
    found = measure_ram_quickly(CPU, RAM)
    assert found.what == QUICK == "ram_quick"
    assert 10**9 < found.median_bytes_per_s <= found.bytes_per_s < 10**12
    assert found.n_runs >= 1
    assert found.how == "a sum by processor time, 2 threads, 192 MiB"


def test_without_the_memory_there_is_none() -> None:
    with pytest.raises(CannotMeasure):
        measure_ram_quickly(CPU, replace(RAM, available_bytes=GIB // 4))
    with pytest.raises(CannotMeasure):
        measure_ram_quickly(replace(CPU, n_threads=128), RAM)
