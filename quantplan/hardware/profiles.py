"""Machines you don't sit at: a short name, `2x3090+64GB`, a cloud instance, a saved host or a handwritten file."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantplan.errors import BadProfile, UnknownGpu
from quantplan.hardware.facts import CpuFacts, GpuFacts, HostFacts, PcieFacts, RamFacts
from quantplan.hardware.gpu_table import GpuSpec, find_gpu, short_name, short_names
from quantplan.places import data_file, state_folder
from quantplan.units import GIB, MIB

_PART = re.compile(r"(?:(\d{1,3})\s*[x×*]\s*)?(.+)", re.IGNORECASE)
_SIZE_ONLY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gb|gib|g)(?:\s*ram)?", re.IGNORECASE)
_MOST_GPUS = 64
_MOST_RAM_BYTES = 64 * 1024 * GIB

ASSUMED_RAM_BYTES = 32 * GIB
ASSUMED_CORES = 8
# What the driver keeps of a card: 517 of 23,028 MiB on an A10 (github.com/mayooot/detect-gpu/issues/3), 615 of 143,771
# MiB on an H200 (tests/data/hosts/h200-vm): a fortieth, at most 640 MiB.
_RESERVED_SHARE, _RESERVED_MOST_BYTES = 40, 640 * MIB
# Metal's recommendedMaxWorkingSetSize, as llama.cpp prints it: two thirds of the RAM up to 32 GiB, three quarters above
APPLE_SMALL_RAM_BYTES = 32 * GIB


def load_profile(text: str, *, folder: Path | None = None) -> HostFacts:
    """The host a person names. `folder` holds saved profiles. Raises BadProfile, UnknownGpu or AmbiguousGpu."""
    from quantplan.hardware.profile_files import read_profile_file

    saved = saved_profile(text, folder=folder)
    if saved.is_file():
        return read_profile_file(saved)
    if text.endswith((".toml", ".json")) or "/" in text:
        return read_profile_file(Path(text))
    instance = cloud_instances().get(text.lower().removeprefix("standard_"))
    if instance is not None:
        return _cloud_host(instance)
    return parse_machine(text)


def saved_profile(name: str, *, folder: Path | None = None) -> Path:
    """Where a profile of that name is kept."""
    kept = folder or state_folder() / "profiles"
    return kept / (f"{name}.json" if re.fullmatch(r"[\w.-]+", name) and name.strip(".") else "-")


def save_profile(host: HostFacts, name: str, *, folder: Path | None = None) -> Path:
    """Keeps a host under a name; refuses names that already mean a card or an instance."""
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise BadProfile(profile=repr(name), where="", why="a name has letters, digits, '.', '_' and '-'")
    if short_name(name) in short_names() or name.lower() in cloud_instances() or _names_a_card(name):
        raise BadProfile(profile=repr(name), where="", why="this name already means a machine; choose another")
    path = saved_profile(name, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"quantplan_profile": 1, "host": host.to_json()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _names_a_card(name: str) -> bool:
    try:
        find_gpu(name)
    except UnknownGpu:
        return False
    except Exception:
        return True
    return True


@functools.cache
def cloud_instances() -> dict[str, dict[str, Any]]:
    """Instance types by name."""
    rows = json.loads(data_file("cloud_instances.json").read_text(encoding="utf-8"))["instances"]
    return {row["name"]: row for row in rows}


def _cloud_host(row: dict[str, Any]) -> HostFacts:
    spec = find_gpu(row["gpu"])
    cpu = CpuFacts(
        model=None, n_physical=row["n_vcpus"] // 2, n_logical=row["n_vcpus"], n_threads=max(row["n_vcpus"] // 2, 1)
    )
    host = assemble([spec] * row["n_gpus"], ram_bytes=row["ram_gib"] * GIB, cpu=cpu, profile=row["name"])
    return host if row["checked"] else replace(host, warnings=(*host.warnings, _unconfirmed(row["name"])))


def _unconfirmed(name: str) -> str:
    return f"the figures of {name} are not confirmed against a public source"


def parse_machine(text: str) -> HostFacts:
    """`[N x] card [+ [N x] card …] [+ RAM]`; a size alone is a machine without a GPU. Sizes are binary: 64GB is 64 GiB,
    as memory is sold."""
    specs: list[GpuSpec] = []
    ram_bytes: int | None = None
    for part in (piece.strip() for piece in text.split("+")):
        size = _SIZE_ONLY.fullmatch(part)
        if size or part.lower() == "cpu":
            if size and ram_bytes is not None:
                raise BadProfile(profile=repr(text), where="", why="names the RAM twice")
            ram_bytes = int(float(size[1]) * GIB) if size else ram_bytes
            continue
        match = _PART.fullmatch(part)
        if match is None:
            raise BadProfile(profile=repr(text), where="", why="an empty part; for example 2x3090+64GB")
        count = int(match[1] or 1)
        if not 1 <= count <= _MOST_GPUS:
            raise BadProfile(profile=repr(text), where="", why=f"{count} cards: must be 1 to {_MOST_GPUS}")
        specs += [find_gpu(match[2])] * count
    if ram_bytes is not None and not GIB // 2 <= ram_bytes <= _MOST_RAM_BYTES:
        raise BadProfile(profile=repr(text), where="", why=f"impossible size of RAM: {ram_bytes:,} bytes")
    return assemble(specs, ram_bytes=ram_bytes, cpu=None, profile=text)


def assemble(
    specs: list[GpuSpec], *, ram_bytes: int | None, cpu: CpuFacts | None, profile: str, os: str = "Linux"
) -> HostFacts:
    """A host of cards as sold. What was not said is assumed, and `warnings` say so."""
    warnings = [_unconfirmed(name) for name in dict.fromkeys(s.name for s in specs if s.checked is False)]
    shared = next((spec for spec in specs if spec.unified), None)
    if ram_bytes is None:
        ram_bytes = shared.memory_bytes if shared else ASSUMED_RAM_BYTES
        gib = ram_bytes // GIB
        warnings.append(f"the RAM of {profile} was not given: assumed {gib} GiB; name it as in {profile}+{gib}GB")
    if cpu is None:
        cpu = CpuFacts(model=None, n_physical=ASSUMED_CORES, n_logical=ASSUMED_CORES, n_threads=ASSUMED_CORES)
        warnings.append(f"the CPU of {profile} is not known: assumed {ASSUMED_CORES} cores")
    bandwidth = shared.bandwidth_bytes_per_s if shared else None
    ram = RamFacts(
        total_bytes=ram_bytes, available_bytes=ram_bytes, physical_bytes=ram_bytes, bandwidth_bytes_per_s=bandwidth
    )
    apple = any(spec.vendor == "apple" for spec in specs)
    return HostFacts(
        os="Darwin" if apple else os,
        cpu=cpu,
        ram=ram,
        gpus=name_devices([device_of(spec, ram) for spec in specs]),
        warnings=tuple(warnings),
        profile=profile,
    )


def apple_usable(ram_bytes: int) -> int:
    """Bytes of a Mac's memory that Metal lets the GPU have by default."""
    if ram_bytes <= APPLE_SMALL_RAM_BYTES:
        return ram_bytes * 2 // 3
    return ram_bytes * 3 // 4


def device_of(spec: GpuSpec, ram: RamFacts) -> GpuFacts:
    """A card as sold, as a device: nominal memory less what a driver keeps; the host's RAM where it is shared."""
    total = spec.driver_memory_bytes or spec.memory_bytes
    reserved = min(total // _RESERVED_SHARE, _RESERVED_MOST_BYTES)
    if spec.unified:
        total, reserved = (apple_usable(ram.total_bytes) if spec.vendor == "apple" else ram.total_bytes), 0
    pcie = PcieFacts(generation=spec.pcie[0], width=spec.pcie[1]) if spec.pcie else None
    return GpuFacts(
        name="",
        product=spec.name,
        vendor=spec.vendor,
        total_bytes=total,
        free_bytes=total - reserved,
        reserved_bytes=reserved,
        unified=spec.unified,
        bandwidth_bytes_per_s=spec.bandwidth_bytes_per_s,
        bandwidth_source="table",
        compute_capability=spec.compute_capability,
        bus_width_bits=spec.bus_width_bits,
        pcie=pcie,
        power_limit_w=spec.power_w,
        spec_name=spec.name,
    )


_BACKENDS = {"nvidia": "CUDA", "amd": "ROCm", "intel": "SYCL", "apple": "MTL"}


def name_devices(gpus: list[GpuFacts]) -> tuple[GpuFacts, ...]:
    """The devices with the engine's names: CUDA0, ROCm0, SYCL0, MTL0, counted by vendor."""
    counts: dict[str, int] = {}
    named = []
    for gpu in gpus:
        backend = _BACKENDS[gpu.vendor]
        named.append(replace(gpu, name=f"{backend}{counts.get(backend, 0)}"))
        counts[backend] = counts.get(backend, 0) + 1
    return tuple(named)
