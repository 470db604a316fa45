"""The plan, as recommend prints it and as a file: what build, serve, gate and export are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import write_atomically
from quantplan.errors import BadModelFile

SCHEMA = "quantplan/plan/1"
_SILENT = ("devices", "embeddings")  # written only where they say something


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    """Memory of one device in bytes; capacity and free are the host's at planning time, None where unknown."""

    name: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int
    output_bytes: int
    overhead_bytes: int
    capacity_bytes: int | None
    free_bytes: int | None

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.context_bytes + self.compute_bytes + self.output_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A predicted or measured value with its range and where it comes from."""

    value: float
    low: float
    high: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Expected or measured damage of the quantization against 16 bit."""

    kld_mean: float | None
    ppl_ratio: float | None
    low: float | None
    high: float | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Memory kept free on a device, and why."""

    device: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The contract quantplan/plan/1. None where unknown.

    `devices` are the GPUs the server may use, () none of them; None is all. `embeddings`: it serves vectors, not text.
    A key of these two is left out of the file where it says nothing.
    """

    model: str
    quant: str
    source: Mapping[str, Any]
    runtime: str
    n_ctx_per_slot: int
    n_parallel: int
    kv_unified: bool
    type_k: str
    type_v: str
    flash_attn: str
    n_batch: int
    n_ubatch: int
    n_gpu_layers: int
    tensor_split: tuple[float, ...]
    n_cpu_moe: int
    override_tensor: tuple[str, ...]
    threads: int
    threads_batch: int
    numa: str | None
    cpu_range: str | None
    cache_ram_bytes: int
    load_mode: str
    mmproj: str | None
    draft: str | None
    memory: tuple[PlannedDevice, ...]
    decode_tokens_per_s: Figure | None
    prefill_tokens_per_s: Figure | None
    quality: Quality | None
    margin: tuple[Margin, ...]
    argv: tuple[str, ...]
    host_fingerprint: str | None
    made_at: str
    devices: tuple[str, ...] | None = None
    embeddings: bool = False

    def to_json(self) -> dict[str, Any]:
        """The contract's shape: memory by devices, speed by kind."""
        told: dict[str, Any] = {"schema": SCHEMA}
        for key, value in asdict(self).items():
            if key == "memory":
                told["memory"] = {"devices": value}
            elif key == "decode_tokens_per_s":
                told["speed"] = {key: value}
            elif key == "prefill_tokens_per_s":
                told["speed"][key] = value
            elif key not in _SILENT or value not in (None, False):
                told[key] = value
        return told


def plan_from_json(told: Mapping[str, Any], *, path: str | Path = "plan") -> Plan:
    """A plan from its JSON; also from a recommend document. Raises BadModelFile when it is not one."""
    try:
        if str(told.get("schema", "")).startswith("quantplan/recommend/"):
            told = told["data"]["plan"]
        if told["schema"] != SCHEMA:
            raise BadModelFile(path=path, why=f"has schema {told['schema']!r}, expected {SCHEMA!r}")
        speed = told["speed"]
        named = {field.name for field in fields(Plan)} & set(told)
        values = {name: told[name] for name in named}
        values |= {name: tuple(told[name]) for name in ("tensor_split", "override_tensor", "argv")}
        if "devices" in values:
            values["devices"] = tuple(told["devices"])
        values["memory"] = tuple(PlannedDevice(**device) for device in told["memory"]["devices"])
        values["margin"] = tuple(Margin(**margin) for margin in told["margin"])
        values["quality"] = Quality(**told["quality"]) if told["quality"] else None
        for name in ("decode_tokens_per_s", "prefill_tokens_per_s"):
            values[name] = Figure(**speed[name]) if speed[name] else None
        return Plan(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadModelFile(path=path, why=f"is not a plan file ({error})") from error


def read_plan(path: Path) -> Plan:
    """A plan file. Raises BadModelFile when it is missing or not one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModelFile(path=path, why="no such plan file") from None
    except (OSError, ValueError) as error:
        raise BadModelFile(path=path, why=f"is not a plan file ({error})") from error
    if not isinstance(told, dict):
        raise BadModelFile(path=path, why="is not a plan file (no JSON object)")
    return plan_from_json(told, path=path)


def write_plan(path: Path, plan: Plan) -> None:
    """The plan as a file, whole or not at all."""
    write_atomically(path, json.dumps(plan.to_json(), indent=2) + "\n")
