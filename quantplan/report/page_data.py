"""The numbers behind a page's sliders, compact: equal parts are written once, speeds with the digits that are shown."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

from quantplan.artifact.plan_file import Figure, Quality
from quantplan.memory.estimate import HOST, DeviceMemory
from quantplan.planner.grid import Cell, Grid, Preset
from quantplan.planner.request import Setting
from quantplan.report.recommendation import placement_text

PARTS = ("model", "context", "compute", "output", "overhead")


class _Table:
    """Values that many cells share, each once."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._known: dict[Hashable, int] = {}

    def index(self, value: Hashable) -> int:
        found = self._known.setdefault(value, len(self.rows))
        if found == len(self.rows):
            self.rows.append(value)
        return found


def page_data(grid: Grid, *, base: str, generates: bool) -> dict[str, Any]:
    """What page_data.js reads. A cell is [lacks, [[device, row], …], place, decode, prefill, total, prompt cache,
    micro-batch]; the tables `memory`, `places` and `origins` are what its indices point into."""
    memory, places, origins = _Table(), _Table(), _Table()
    names = [capacity.name for capacity in grid.capacities]
    gpus = [name for name in names if name != HOST]
    cells = [_cell(cell, grid.n_layer, names, gpus, memory, places, origins) if cell else None for cell in grid.cells]
    return {
        "base": base,
        "generates": generates,
        "presets": [_preset(preset) for preset in grid.presets],
        "caches": [cache_name(kv) for kv in grid.axes.kv_types],
        "slots": list(grid.axes.n_parallels),
        "contexts": list(grid.axes.contexts),
        "devices": [
            {"name": one.name, "capacity": one.capacity_bytes, "free": one.free_bytes, "margin": one.margin_bytes,
             "usable": one.usable_bytes, "unified": one.unified}
            for one in grid.capacities
        ],
        "planAt": list(grid.plan_at),
        "layers": grid.n_layer + 1,
        "wholeUpTo": grid.whole_n_ctx,
        "fitsUpTo": grid.fits_n_ctx,
        "memory": memory.rows,
        "places": places.rows,
        "origins": origins.rows,
        "cells": cells,
    }  # fmt: skip


def as_script(data: object) -> str:
    """JSON that may stand inside a script element: whatever a name holds, it ends no element and opens none."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cache_name(kv: tuple[str, str]) -> str:
    """The cache's types as the command takes them."""
    return kv[0] if kv[0] == kv[1] else "/".join(kv)


def _cell(
    cell: Cell, n_layer: int, names: list[str], gpus: list[str], memory: _Table, places: _Table, origins: _Table
) -> list[Any]:
    setting = cell.setting
    needs = [[names.index(need.name), memory.index(_parts(need))] for need in cell.needs]
    place = (
        placement_text(setting.devices, setting.n_gpu_layers, n_layer, gpus=gpus, tensor_split=setting.tensor_split,
                       n_cpu_moe=setting.n_cpu_moe),
        _counts(setting, names, n_layer), setting.n_cpu_moe,
    )  # fmt: skip
    return [
        cell.lacks, needs, places.index(place), _figure(cell.decode, origins), _figure(cell.prefill, origins),
        _shown(cell.total_per_s), cell.cache_ram_bytes, setting.n_ubatch,
    ]  # fmt: skip


def _parts(need: DeviceMemory) -> tuple[int, ...]:
    """Companions are weights of other models."""
    return (need.model_bytes + need.extra_bytes, need.context_bytes, need.compute_bytes, need.output_bytes,
            need.overhead_bytes)  # fmt: skip


def _counts(setting: Setting, names: list[str], n_layer: int) -> tuple[tuple[int, int], ...]:
    """(device, layers) in the order of the layers: those of the host come first, the head is the last."""
    on_gpus = min(setting.n_gpu_layers, n_layer + 1) if setting.devices else 0
    split = setting.tensor_split or (on_gpus, *(0,) * (len(setting.devices) - 1))
    found = [(names.index(HOST), n_layer + 1 - on_gpus)]
    found += [(names.index(name), count) for name, count in zip(setting.devices, split, strict=False)]
    return tuple((device, count) for device, count in found if count)


def _figure(figure: Figure | None, origins: _Table) -> list[float] | None:
    if figure is None:
        return None
    return [_shown(figure.value), _shown(figure.low), _shown(figure.high), origins.index(figure.origin)]


def _shown(value: float) -> float:
    """Three digits: what `rate` shows."""
    return float(f"{value:.3g}")


def _preset(preset: Preset) -> dict[str, Any]:
    quality = preset.quality
    return {
        "name": preset.quant, "bytes": preset.file_bytes, "objection": preset.objection,
        "kld": quality.kld_mean if quality else None,
        "low": quality.low if quality else None, "high": quality.high if quality else None,
        "value": _nats(quality), "range": _nats_range(quality), "origin": quality.origin if quality else None,
    }  # fmt: skip


def _nats(quality: Quality | None) -> str | None:
    return None if quality is None or quality.kld_mean is None else f"{quality.kld_mean:.2g}"


def _nats_range(quality: Quality | None) -> str | None:
    if quality is None or quality.low is None or not quality.high:
        return None
    return f"{quality.low:.2g} to {quality.high:.2g}"
