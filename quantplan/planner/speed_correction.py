"""What was measured on this very host corrects what the shipped constants say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantplan.planner.calibration import HostMeasurement
from quantplan.planner.speed_host import DeviceSpeed
from quantplan.planner.speed_work import PreparedSpeed

_LEAST_SPREAD = 0.06  # two runs of one configuration differ by so much (docs/speed.md)
# How much a measurement of another model counts: by class of weights, mixture or dense, and size (e-fold of bytes)
_OTHER_CLASS, _OTHER_KIND, _SAME_MODEL = 0.25, 0.4, 8.0


@dataclass(frozen=True, slots=True)
class Correction:
    """Factor on a device's seconds, the relative half-width that remains, and what it was measured with."""

    factor: float
    spread: float
    origin: str


def correction(prepared: PreparedSpeed, device: DeviceSpeed, kind: Literal["decode", "prefill"]) -> Correction | None:
    """The weighted mean of measured over predicted on this device, nearest models first; None without measurements."""
    if not device.measured:
        return None
    key = f"{kind} {id(device.measured)}"
    known = prepared.kept.get(key)
    if known is None or known[0] is not device.measured:
        known = prepared.kept[key] = (device.measured, _correction(prepared, device.measured, kind))
    found = known[1]
    assert found is None or isinstance(found, Correction)
    return found


def _correction(prepared: PreparedSpeed, measured: Sequence[HostMeasurement], kind: str) -> Correction | None:
    rows = [row for row in measured if row.kind == kind and row.measured_s > 0 and row.predicted_s > 0]
    if not rows:
        return None
    weights = [_weight(prepared, row) for row in rows]
    logs = [math.log(row.measured_s / row.predicted_s) for row in rows]
    total = sum(weights)
    mean = sum(w * x for w, x in zip(weights, logs, strict=True)) / total
    scatter = math.sqrt(sum(w * (x - mean) ** 2 for w, x in zip(weights, logs, strict=True)) / total)
    nearest = rows[max(range(len(rows)), key=weights.__getitem__)]
    spread = max(_LEAST_SPREAD, 1.3 * scatter, nearest.spread)
    what = f"llama-bench, {len(rows)} runs, nearest {nearest.model} {nearest.quant}, llama.cpp {nearest.build}"
    return Correction(math.exp(mean), spread, f"calibrated on this host: {what}, {nearest.measured_at[:10]}")


def _weight(prepared: PreparedSpeed, row: HostMeasurement) -> float:
    same = 1.0 if row.weights == prepared.main_class else _OTHER_CLASS
    alike = 1.0 if row.is_mixture == prepared.is_mixture else _OTHER_KIND
    apart = math.log(max(row.nbytes, 1) / max(prepared.decode_bytes, 1))
    own = _SAME_MODEL if row.model == prepared.facts.id and same == 1.0 else 1.0
    return own * same * alike * math.exp(-(apart**2) / 2)
