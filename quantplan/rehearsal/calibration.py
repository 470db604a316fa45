"""The speed model's constants: those that ship with quantplan, and what was measured on this very host."""

from __future__ import annotations

import json
from functools import cache

from quantplan.places import data_file
from quantplan.planner.calibration import Calibration, calibration_from


@cache
def shipped_calibration() -> Calibration:
    """data/speed_calibration.json."""
    return calibration_from(json.loads(data_file("speed_calibration.json").read_text(encoding="utf-8")))
