"""The engine's own word on devices: `llama-server --list-devices`, against what was read here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantplan.errors import QuantplanError
from quantplan.hardware.facts import GpuFacts
from quantplan.llama.process import Runner
from quantplan.units import MIB

LIST_TIMEOUT_S = 20.0
# common/arg.cpp, common_print_available_devices: "  %s: %s (%zu MiB, %zu MiB free)"
_LINE = re.compile(r"^\s{2}(\S+): (.+) \((\d+) MiB, (\d+) MiB free\)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDevice:
    """One device as the engine lists it."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


def list_devices(program: Sequence[str], run: Runner) -> tuple[EngineDevice, ...] | None:
    """What the engine can use, in its order; None when it does not answer in time or at all."""
    try:
        told = run(
            (*program, "--list-devices"), step="llama-server --list-devices", timeout_s=LIST_TIMEOUT_S, check=False
        )
    except QuantplanError:
        return None
    return parse_devices((*told.stdout, *told.stderr)) if told.returncode == 0 else None


def parse_devices(lines: Sequence[str]) -> tuple[EngineDevice, ...]:
    """The devices in the printed list."""
    matches = filter(None, map(_LINE.match, lines))
    return tuple(
        EngineDevice(name=m[1], description=m[2], total_bytes=int(m[3]) * MIB, free_bytes=int(m[4]) * MIB)
        for m in matches
    )


def named_by_engine(
    gpus: tuple[GpuFacts, ...], devices: Sequence[EngineDevice]
) -> tuple[tuple[GpuFacts, ...], tuple[str, ...]]:
    """The GPUs in the engine's order and with its names, matched by product and memory; and warnings about those that
    only one of both sees. CUDA's total is the driver's without what the driver keeps."""
    left = list(gpus)
    named: list[GpuFacts] = []
    warnings: list[str] = []
    for device in devices:
        if device.name.startswith(("CPU", "BLAS", "RPC")):
            continue
        alike = [
            (abs(gpu.total_bytes - device.total_bytes), index) for index, gpu in enumerate(left) if _same(gpu, device)
        ]
        match = left[min(alike)[1]] if alike else None
        if match is None:
            warnings.append(f"the engine sees {device.name} ({device.description}), which was not found otherwise")
            continue
        left.remove(match)
        named.append(replace(match, name=device.name))
    warnings += [f"the engine does not see {gpu.product} ({gpu.name})" for gpu in left]
    return (*named, *left), tuple(warnings)


def _same(gpu: GpuFacts, device: EngineDevice) -> bool:
    ours, theirs = gpu.product.lower(), device.description.lower()
    return ours in theirs or theirs in ours
