"""The fitted constants of the speed model, as data: by backend, with their spread and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpeed:
    """What an engine's backend gets out of a device.

    `read` is the share of the memory's bandwidth; `cost` by weight type the float operations a weight takes when one
    token is decoded; `matrix_s` and `layer_s` the seconds a matrix product and a layer take whatever their size;
    `token_s` a token; `prefill` by weight type the share of the device's matrix arithmetic. `spread` is the relative
    half-width of the range.
    """

    read: float
    cost: Mapping[str, float]
    matrix_s: float
    layer_s: float
    token_s: float
    prefill: Mapping[str, float]
    spread_decode: float
    spread_prefill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All backends' constants; `source` says what they were fitted from."""

    backends: Mapping[str, BackendSpeed]
    link_share: float
    source: str


def calibration_from(told: Mapping[str, Any]) -> Calibration:
    """The calibration of a parsed data file."""
    backends = {name: BackendSpeed(**values) for name, values in told["backends"].items()}
    return Calibration(backends=backends, link_share=told["link_share"], source=told["source"])
