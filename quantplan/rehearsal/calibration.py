"""The speed model's constants: those that ship with quantplan, and what was measured on this very host."""

from __future__ import annotations

import json
from functools import cache

from quantplan.hardware.gpu_table import GpuSpec, all_specs
from quantplan.places import data_file
from quantplan.planner.calibration import Calibration, CardCompute, Memory, calibration_from


@cache
def shipped_calibration() -> Calibration:
    """data/speed_calibration.json, with the cards' arithmetic of data/gpus.json."""
    told = json.loads(data_file("speed_calibration.json").read_text(encoding="utf-8"))
    from dataclasses import replace

    return replace(calibration_from(told), cards={name: _card(spec) for name, spec in all_specs().items()})


def _card(spec: GpuSpec) -> CardCompute:
    memory: Memory = "HBM" if (spec.memory_type or "").startswith("HBM") else "GDDR"
    return CardCompute(
        fp32_flops_per_s=spec.fp32_flops_per_s, fp16_flops_per_s=spec.fp16_flops_per_s,
        memory="shared" if spec.unified else memory,
    )  # fmt: skip
