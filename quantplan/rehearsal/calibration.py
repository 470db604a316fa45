"""The speed model's constants: those that ship with quantplan, and what was measured on this very host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from quantplan.errors import QuantplanError
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.gpu_table import GpuSpec, all_specs
from quantplan.hardware.measure import Measured, keep_measured, read_measured, with_measured
from quantplan.hardware.measure_quick import QUICK, measure_ram_quickly
from quantplan.places import cache_folder, data_file
from quantplan.planner.calibration import Calibration, CardCompute, HostMeasurement, Memory, calibration_from
from quantplan.planner.speed import SpeedHost, speed_host


@cache
def shipped_calibration() -> Calibration:
    """data/speed_calibration.json, with the cards' arithmetic of data/gpus.json."""
    told = json.loads(data_file("speed_calibration.json").read_text(encoding="utf-8"))
    return replace(calibration_from(told), cards={name: _card(spec) for name, spec in all_specs().items()})


def _card(spec: GpuSpec) -> CardCompute:
    memory: Memory = "HBM" if (spec.memory_type or "").startswith("HBM") else "GDDR"
    return CardCompute(
        fp32_flops_per_s=spec.fp32_flops_per_s, fp16_flops_per_s=spec.fp16_flops_per_s,
        memory="shared" if spec.unified else memory,
    )  # fmt: skip


def speed_host_for(host: HostFacts, *, folder: Path | None = None) -> SpeedHost:
    """The devices of a host with everything known of their speed: for the machine one sits at, what was measured
    there, and its RAM's bandwidth measured now (a fifth of a second, kept) where it never was."""
    if host.profile is not None:
        return speed_host(host, shipped_calibration())
    kept = read_measured(host)
    known = with_measured(host, kept)
    calibration = replace(shipped_calibration(), measured=read_bench(host, folder=folder))
    if known.ram.bandwidth_bytes_per_s is None:
        quick = next((row for row in kept if row.what == QUICK), None) or _quick(host)
        if quick is not None:
            ram = replace(known.ram, bandwidth_bytes_per_s=quick.median_bytes_per_s)
            known, calibration = replace(known, ram=ram), replace(calibration, ram_is_quick=True)
    return speed_host(known, calibration)


def _quick(host: HostFacts) -> Measured | None:
    """A brief measurement, kept; None without room for its buffers: the model says then what it assumes instead."""
    try:
        found = measure_ram_quickly(host.cpu, host.ram)
        keep_measured(host, (found,))
    except (QuantplanError, OSError):
        return None
    return found


# ---- what `bench` and rehearsals measured, kept per machine


def bench_file(host: HostFacts, *, folder: Path | None = None) -> Path:
    return (folder or cache_folder() / "bench") / f"{host.fingerprint}.json"


def read_bench(host: HostFacts, *, folder: Path | None = None) -> tuple[HostMeasurement, ...]:
    """The runs kept for this machine; none where there are none that can be read."""
    try:
        rows = json.loads(bench_file(host, folder=folder).read_text(encoding="utf-8"))
        return tuple(HostMeasurement(**row) for row in rows)
    except (OSError, ValueError, TypeError):
        return ()


def keep_bench(host: HostFacts, rows: Sequence[HostMeasurement], *, folder: Path | None = None) -> Path:
    """Adds runs to the ones kept for this machine. A newer run of the same configuration replaces the older, and one of
    another build replaces all of the old build."""
    builds = {row.build for row in rows}
    kept = {_key(row): row for row in read_bench(host, folder=folder) if row.build in builds}
    kept |= {_key(row): row for row in rows}
    path = bench_file(host, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(row) for row in kept.values()], indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _key(row: HostMeasurement) -> tuple[object, ...]:
    return row.device, row.kind, row.model, row.quant, row.n_depth
