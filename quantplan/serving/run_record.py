"""What is kept of a server while it runs: by it the contract check knows a process that quantplan started."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantplan.hardware.processes import started_ticks
from quantplan.places import state_folder

SCHEMA = "quantplan/running/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSum:
    """Bytes of one kind of buffer on one device, as the engine printed them."""

    device: str
    part: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One running engine. `started_ticks` tells it from a later process of the same pid."""

    pid: int
    started_ticks: int | None
    url: str
    runtime: str
    argv: tuple[str, ...]
    artifact: str | None
    buffers: tuple[BufferSum, ...]
    type_k: str | None
    type_v: str | None


def records_folder() -> Path:
    return state_folder() / "running"


def write_record(record: RunRecord) -> Path:
    """Keeps the record, readable by its user alone."""
    folder = records_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{record.pid}.json"
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps({"schema": SCHEMA, **asdict(record)}), encoding="utf-8")
    partial.replace(path)
    return path


def remove_record(pid: int) -> None:
    with contextlib.suppress(OSError):
        (records_folder() / f"{pid}.json").unlink()


def read_record(pid: int) -> RunRecord | None:
    """The record of a process that is still the one it was written for, or None."""
    try:
        told: dict[str, Any] = json.loads((records_folder() / f"{pid}.json").read_text(encoding="utf-8"))
        if told.pop("schema") != SCHEMA or told["started_ticks"] != started_ticks(pid):
            return None
        buffers = tuple(BufferSum(**one) for one in told.pop("buffers"))
        return RunRecord(**{**told, "argv": tuple(told["argv"]), "buffers": buffers})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summed(lines: Sequence[Mapping[str, object]]) -> tuple[BufferSum, ...]:
    """Buffer events (device, part, bytes) added up by device and part, in the order of their first line."""
    found: dict[tuple[str, str], int] = {}
    for line in lines:
        key = (str(line["device"]), str(line["part"]))
        found[key] = found.get(key, 0) + int(str(line["bytes"]))
    return tuple(BufferSum(device=device, part=part, bytes=size) for (device, part), size in found.items())
