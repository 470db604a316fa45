"""Profile files: a host saved by us (JSON), or a machine described by hand (TOML or JSON)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from quantplan.errors import BadProfile
from quantplan.hardware.facts import (
    CpuFacts,
    DiskFacts,
    GpuFacts,
    GpuProcess,
    HostFacts,
    NumaNode,
    PcieFacts,
    RamFacts,
    SystemFacts,
)
from quantplan.hardware.gpu_table import find_gpu
from quantplan.hardware.profiles import assemble, device_of, name_devices
from quantplan.units import GIB, TIB, parse_size

_LARGEST_FILE_BYTES = 1024**2
_VENDORS = ("nvidia", "amd", "intel", "apple")


def read_profile_file(path: Path) -> HostFacts:
    """The host a file describes. Raises BadProfile with the place in the file and what is known there."""
    document = _parsed(path)
    if "quantplan_profile" in document:
        if document["quantplan_profile"] != 1:
            raise BadProfile(profile=path, where="quantplan_profile", why="only version 1 is known")
        _only(document, ("quantplan_profile", "host"), path, "")
        host: HostFacts = _build(HostFacts, document.get("host"), path, "host")
        _plausible(host, path)
        return host
    return _handwritten(document, path)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise BadProfile(profile=path, where="", why="is larger than any profile (1 MiB)")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadProfile(profile=path, where="", why=(error.strerror or str(error)).lower()) from None
    except UnicodeDecodeError:
        raise BadProfile(profile=path, where="", why="is not text") from None
    try:
        found = json.loads(text) if path.suffix == ".json" else toml().loads(text)
    except (ValueError, RecursionError) as error:
        raise BadProfile(profile=path, where="", why=f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BadProfile(profile=path, where="", why="must be a table of gpu, cpu, ram, disk")
    return found


def toml() -> Any:
    import importlib

    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


# ---- a machine described by hand


def _handwritten(document: dict[str, Any], path: Path) -> HostFacts:
    _only(document, ("name", "gpu", "cpu", "ram", "disk"), path, "")
    ram, cpu = _ram(_table(document, "ram", path), path), _cpu(_table(document, "cpu", path), path)
    rows = document.get("gpu", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadProfile(profile=path, where="gpu", why="must be written [[gpu]], one block a card")
    name = str(document.get("name", path.stem))
    base = assemble([], ram_bytes=ram.total_bytes if ram else None, cpu=cpu, profile=name)
    host_ram = ram or base.ram
    gpus = [gpu for index, row in enumerate(rows) for gpu in _gpus(row, host_ram, path, f"gpu[{index}]")]
    host = replace(
        base,
        ram=host_ram,
        gpus=name_devices(gpus),
        os="Darwin" if any(gpu.vendor == "apple" for gpu in gpus) else "Linux",
        disk=_disk(_table(document, "disk", path), path),
    )
    _plausible(host, path)
    return host


def _table(document: dict[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise BadProfile(profile=path, where=key, why=f"must be a table, written [{key}]")
    return value


def _only(row: Mapping[str, Any], known: tuple[str, ...], path: Path, where: str) -> None:
    import difflib

    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise BadProfile(profile=path, where=where, why=f"unknown key {key!r}{meant}", candidates=known)


def _size(row: dict[str, Any], key: str, path: Path, where: str) -> int | None:
    """A size: an integer of bytes, or text. `24GB` of memory is binary, as memory is sold."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip().removesuffix("/s") if key in ("bandwidth", "read") else value
        decimal = key in ("bandwidth", "read", "free_disk")
        try:
            return parse_size(text if decimal else text.upper().replace("GB", "G").replace("MB", "M"))
        except ValueError:
            pass
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise BadProfile(profile=path, where=f"{where}.{key}", why=f"{value!r} is not a size; for example '24GB'")


def _count(row: dict[str, Any], key: str, path: Path, where: str, *, most: int) -> int | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadProfile(profile=path, where=f"{where}.{key}", why=f"{value!r} is not a whole number from 1 to {most}")
    return value


def _gpus(row: dict[str, Any], ram: RamFacts, path: Path, where: str) -> list[GpuFacts]:
    _only(row, ("card", "count", "name", "vendor", "memory", "free", "bandwidth"), path, where)
    count = _count(row, "count", path, where, most=64) or 1
    memory, free = _size(row, "memory", path, where), _size(row, "free", path, where)
    bandwidth = _size(row, "bandwidth", path, where)
    if "card" in row:
        gpu = device_of(find_gpu(str(row["card"])), ram)
    elif memory is None:
        raise BadProfile(profile=path, where=where, why="needs a 'card' of the table, or at least its 'memory'")
    else:
        vendor = row.get("vendor", "nvidia")
        if vendor not in _VENDORS:
            raise BadProfile(profile=path, where=f"{where}.vendor", why=f"{vendor!r} is not known", candidates=_VENDORS)
        product = str(row.get("name", "unnamed GPU"))
        gpu = GpuFacts(name="", product=product, vendor=vendor, total_bytes=memory, free_bytes=memory)
    total = memory if memory is not None else gpu.total_bytes
    left = free if free is not None else min(gpu.free_bytes, total)
    source = ("given", bandwidth) if bandwidth is not None else (gpu.bandwidth_source, gpu.bandwidth_bytes_per_s)
    gpu = replace(gpu, total_bytes=total, free_bytes=left, bandwidth_source=source[0], bandwidth_bytes_per_s=source[1])
    return [gpu] * count


def _cpu(row: dict[str, Any] | None, path: Path) -> CpuFacts | None:
    if row is None:
        return None
    _only(row, ("model", "cores", "threads", "logical", "simd"), path, "cpu")
    cores = _count(row, "cores", path, "cpu", most=4096)
    if cores is None:
        raise BadProfile(profile=path, where="cpu", why="needs 'cores', its physical cores")
    threads = _count(row, "threads", path, "cpu", most=4096) or cores
    logical = _count(row, "logical", path, "cpu", most=8192) or max(cores, threads)
    model = row.get("model")
    return CpuFacts(
        model=str(model) if model is not None else None,
        n_physical=cores,
        n_logical=logical,
        n_threads=threads,
        simd=tuple(str(flag) for flag in row.get("simd", ())),
    )


def _ram(row: dict[str, Any] | None, path: Path) -> RamFacts | None:
    if row is None:
        return None
    _only(row, ("total", "available", "bandwidth"), path, "ram")
    total = _size(row, "total", path, "ram")
    if total is None:
        raise BadProfile(profile=path, where="ram", why="needs 'total'")
    available = _size(row, "available", path, "ram")
    return RamFacts(
        total_bytes=total,
        available_bytes=total if available is None else available,
        physical_bytes=total,
        bandwidth_bytes_per_s=_size(row, "bandwidth", path, "ram"),
    )


def _disk(row: dict[str, Any] | None, path: Path) -> DiskFacts | None:
    if row is None:
        return None
    _only(row, ("path", "free", "read", "kind"), path, "disk")
    free = _size({"free_disk": row.get("free")}, "free_disk", path, "disk") or 0
    return DiskFacts(
        path=str(row.get("path", "/")),
        device=None,
        filesystem=None,
        kind=row.get("kind"),
        total_bytes=free,
        free_bytes=free,
        read_bytes_per_s=_size(row, "read", path, "disk"),
    )


# ---- a host saved by us

_NESTED: dict[tuple[type, str], type] = {
    (HostFacts, "cpu"): CpuFacts,
    (HostFacts, "ram"): RamFacts,
    (HostFacts, "gpus"): GpuFacts,
    (HostFacts, "disk"): DiskFacts,
    (HostFacts, "system"): SystemFacts,
    (GpuFacts, "pcie"): PcieFacts,
    (GpuFacts, "processes"): GpuProcess,
    (CpuFacts, "numa_nodes"): NumaNode,
}


def _build(kind: type, value: Any, path: Path, where: str) -> Any:
    """One of our dataclasses from its JSON; keys must be its fields (`fingerprint` is computed)."""
    if not isinstance(value, dict):
        raise BadProfile(profile=path, where=where, why="must be a table")
    known = tuple(field.name for field in fields(kind))
    _only({k: v for k, v in value.items() if k != "fingerprint"}, known, path, where)
    arguments = {}
    for key in known:
        if key in value:
            inner = _NESTED.get((kind, key))
            arguments[key] = _value(inner, value[key], path, f"{where}.{key}")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise BadProfile(
            profile=path, where=where, why=str(error).replace(f"{kind.__name__}.__init__() ", "")
        ) from None


def _value(kind: type | None, value: Any, path: Path, where: str) -> Any:
    if isinstance(value, list):
        return tuple(_build(kind, item, path, where) if kind else item for item in value)
    if kind is not None and value is not None:
        return _build(kind, value, path, where)
    return value


def _plausible(host: HostFacts, path: Path) -> None:
    """Refuses sizes no machine has: zero, negative, free above total, beyond any hardware, or no number at all."""
    checks: list[tuple[str, Any, int, int]] = [
        ("ram.total", host.ram.total_bytes, GIB // 4, 64 * TIB),
        ("ram.available", host.ram.available_bytes, 0, host.ram.total_bytes),
        ("cpu.cores", host.cpu.n_physical, 1, 4096),
        ("cpu.threads", host.cpu.n_threads, 1, max(host.cpu.n_logical, 1)),
    ]
    if host.ram.bandwidth_bytes_per_s is not None:
        checks.append(("ram.bandwidth", host.ram.bandwidth_bytes_per_s, 10**8, 10**14))
    for gpu in host.gpus:
        checks += [
            (f"gpu {gpu.product} memory", gpu.total_bytes, GIB // 4, 4 * TIB),
            (f"gpu {gpu.product} free", gpu.free_bytes, 0, gpu.total_bytes),
        ]
        if gpu.bandwidth_bytes_per_s is not None:
            checks.append((f"gpu {gpu.product} bandwidth", gpu.bandwidth_bytes_per_s, 10**9, 10**14))
    for where, value, least, most in checks:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadProfile(
                profile=path, where=where, why=f"impossible: {value!r}, must be from {least:,} to {most:,}"
            )
