"""How far the arithmetic is from what llama.cpp printed.

    python scripts/accuracy.py --truth DIR --models FILE [--json] [--plot FILE] [--bars]

DIR holds tables named and shaped like fit_cpu.csv, fit_cuda.csv, serve_cuda.csv and quantized_size.csv (some may be
missing); FILE is a list of {name, config}. Every row is predicted from the configuration alone and printed with the
truth and the error, then a summary by table and category. Exit status 4 when a bar is missed and --bars is given.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import MemoryEstimate, PreparedModel, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.quant.presets import apply_preset
from quantplan.units import MIB

CHECK_FAILED = 4
UNQUANTIZED = ("BF16", "F16", "F32")
GPU = "CUDA0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One number of one row: MiB predicted and printed."""

    table: str
    category: str
    what: str
    predicted: float
    truth: float
    known: bool = True

    @property
    def error(self) -> float:
        return self.predicted - self.truth

    @property
    def relative(self) -> float:
        return self.error / self.truth if self.truth else (0.0 if not self.error else float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A limit on one category: the share of rows that must be within either limit, and a limit for all rows."""

    name: str
    applies: Callable[[Compared], bool]
    relative: float
    mib: float
    share: float = 1.0
    low_mib: float | None = None  # never further below the truth than this
    median_relative: float | None = None


class Models:
    """The models of a file, prepared once a preset."""

    def __init__(self, path: Path) -> None:
        self._configs = {entry["name"]: entry["config"] for entry in json.loads(path.read_text(encoding="utf-8"))}
        self.facts = cache(self._facts)
        self.prepared = cache(self._prepared)

    def __contains__(self, name: str) -> bool:
        return name in self._configs

    def _facts(self, name: str) -> ModelFacts:
        header = header_from_config(self._configs[name], path=name)
        return facts_from_metadata(header.metadata, header.tensors, id=name, origin=FactsOrigin.CONFIG)

    def _prepared(self, name: str, quant: str) -> PreparedModel:
        facts = self.facts(name)
        if quant.upper() in UNQUANTIZED:
            return prepare(facts)
        return prepare(facts, apply_preset(facts.tensors, facts.metadata, quant).tensors)


def rows_of(truth: Path, table: str) -> Iterator[dict[str, str]]:
    path = truth / f"{table}.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _mib(n_bytes: int) -> int:
    return n_bytes // MIB  # as the tools print whole MiB


def fit_cpu(models: Models, truth: Path) -> Iterator[Compared]:
    for row in rows_of(truth, "fit_cpu"):
        ctx = ContextParams(
            n_ctx=int(row["n_ctx"]), n_ubatch=int(row["n_ubatch"]), n_parallel=int(row["n_parallel"]),
            type_k=row["type_k"].upper(), type_v=row["type_v"].upper(), flash_attn=row["flash_attn"] != "off",
        )  # fmt: skip
        said = estimate_memory(models.prepared(row["model"], "BF16"), ctx, Placement(), reserve="fit-params",
                               whole_graph=True)  # fmt: skip
        yield from _parts("fit_cpu", _label(row), said, "Host", row)


def fit_cuda(models: Models, truth: Path) -> Iterator[Compared]:
    for row in rows_of(truth, "fit_cuda"):
        kind = row["type_kv"].upper()
        ctx = ContextParams(
            n_ctx=int(row["n_ctx"]), n_ubatch=int(row["n_ubatch"]), n_parallel=int(row["n_parallel"]), type_k=kind,
            type_v=kind, flash_attn=row["flash_attn"] != "off",
        )  # fmt: skip
        said = estimate_memory(
            models.prepared(row["model"], row["quant"]), ctx, _placement(row), reserve="fit-params", whole_graph=True
        )
        yield from _parts("fit_cuda", _label(row), said, row["device"], row)


def _parts(table: str, what: str, said: MemoryEstimate, device: str, row: dict[str, str]) -> Iterator[Compared]:
    memory = said.device(device)
    for category, n_bytes in (("model", memory.model_bytes), ("context", memory.context_bytes),
                              ("compute", memory.compute_bytes)):  # fmt: skip
        known = category != "compute" or said.compute_known
        yield Compared(table=table, category=category, what=f"{what} {device}", predicted=_mib(n_bytes),
                       truth=float(row[f"{category}_mib"]), known=known)  # fmt: skip


def _placement(row: dict[str, str]) -> Placement:
    extra = row.get("extra", "").split()
    n_cpu_moe = int(extra[extra.index("-ncmoe") + 1]) if "-ncmoe" in extra else 0
    return Placement(devices=(GPU,), n_gpu_layers=int(row["n_gpu_layers"]), n_cpu_moe=n_cpu_moe,
                     cpu_moe="-cmoe" in extra)  # fmt: skip


def serve_cuda(models: Models, truth: Path) -> Iterator[Compared]:
    driver = driver_context("NVIDIA H200")
    for row in rows_of(truth, "serve_cuda"):
        slots = None if row["n_parallel"] == "auto" else int(row["n_parallel"])
        ctx = ContextParams(
            n_ctx=int(row["n_ctx"]), n_parallel=slots, kv_unified=row["kv_unified"] == "yes",
            type_k=row["type_kv"].upper(), type_v=row["type_kv"].upper(),
        )  # fmt: skip
        said = estimate_memory(models.prepared(row["model"], row["quant"]), ctx, _placement(row), driver=(driver,),
                               whole_graph=True)  # fmt: skip
        yield from _server(_label(row), said, row)


def _server(what: str, said: MemoryEstimate, row: dict[str, str]) -> Iterator[Compared]:
    gpu, host = said.device(GPU), said.device("Host")
    printed = re.findall(r"(\S+) (model|KV|RS|compute|output) buffer size = ([\d.]+) MiB", row["buffers"])

    def total(devices: tuple[str, ...], kinds: tuple[str, ...]) -> float:
        return sum(float(size) for device, kind, size in printed if device in devices and kind in kinds)

    hosts, caches = ("CPU", "CPU_Mapped", "CUDA_Host"), ("KV", "RS")
    pairs = (
        ("model", gpu.model_bytes, total((GPU,), ("model",))),
        ("context", gpu.context_bytes, total((GPU,), caches)),
        ("context", host.context_bytes, total(hosts, caches)),
        ("compute", gpu.compute_bytes, total((GPU,), ("compute",))),
        ("compute", host.compute_bytes, total(hosts, ("compute",))),
        ("output", host.output_bytes, total(hosts, ("output",))),
        ("total", gpu.buffers_bytes, total((GPU,), ("model", *caches, "compute"))),
        ("used", gpu.total_bytes, float(row["used_mib"])),
    )
    for category, n_bytes, truth in pairs:
        yield Compared(table="serve_cuda", category=category, what=what, predicted=n_bytes / MIB, truth=truth,
                       known=category not in ("compute", "total", "used") or said.compute_known)  # fmt: skip


def quantized_size(models: Models, truth: Path) -> Iterator[Compared]:
    for row in rows_of(truth, "quantized_size"):
        facts = models.facts(row["model"])
        result = apply_preset(facts.tensors, facts.metadata, row["quant"])
        yield Compared(table="quantized_size", category="model", what=_label(row), predicted=result.tensor_bytes / MIB,
                       truth=float(row["mib"]))  # fmt: skip


def _label(row: dict[str, str]) -> str:
    skipped = {"model_mib", "context_mib", "compute_mib", "device", "buffers", "used_mib", "ready_s", "mib",
               "bits_per_weight", "tensor_types"}  # fmt: skip
    return " ".join(value for key, value in row.items() if key not in skipped and value)


TABLES = {"fit_cpu": fit_cpu, "fit_cuda": fit_cuda, "serve_cuda": serve_cuda, "quantized_size": quantized_size}


def _is(table: str | None, *categories: str) -> Callable[[Compared], bool]:
    return lambda c: (table is None or c.table == table) and c.category in categories


BARS = (
    Bar(name="context within 1 MiB", applies=_is(None, "context"), relative=0, mib=1),
    Bar(name="weights by device within 1 MiB", applies=_is("fit_cuda", "model"), relative=0, mib=1),
    Bar(name="total of CUDA buffers within 1 % or 32 MiB on 95 %", applies=_is("serve_cuda", "total"), relative=0.01,
        mib=32, share=0.95),
    Bar(name="total of CUDA buffers within 3 % or 48 MiB", applies=_is("serve_cuda", "total"), relative=0.03, mib=48),
    Bar(name="memory used within 1.5 % or 48 MiB", applies=_is("serve_cuda", "used"), relative=0.015, mib=48),
    Bar(name="compute: median under 5 %, never low by over 48 MiB", applies=_is(None, "compute"), relative=float("inf"),
        mib=0, low_mib=48, median_relative=0.05),
)  # fmt: skip


def missed(bar: Bar, compared: Iterable[Compared]) -> str | None:
    """Why a bar is missed, or None."""
    chosen = [c for c in compared if bar.applies(c)]
    if not chosen:
        return None
    within = sum(abs(c.error) <= bar.mib + 1e-6 or abs(c.relative) <= bar.relative for c in chosen)
    if within < bar.share * len(chosen):
        worst = max(chosen, key=lambda c: abs(c.error))
        return f"{within} of {len(chosen)} rows; worst {worst.what}: {worst.error:+.2f} MiB"
    if bar.low_mib is not None and min(c.error for c in chosen) < -bar.low_mib:
        lowest = min(chosen, key=lambda c: c.error)
        return f"{lowest.what}: {lowest.error:+.2f} MiB"
    if bar.median_relative is not None and median(abs(c.relative) for c in chosen) > bar.median_relative:
        return f"median {median(abs(c.relative) for c in chosen):.1%}"
    return None


def summary(compared: list[Compared]) -> list[dict[str, Any]]:
    """By table and category: rows, and the absolute and signed errors."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for c in compared:
        groups.setdefault((c.table, c.category), []).append(c)
    result = []
    for (table, category), group in sorted(groups.items()):
        errors = sorted(abs(c.error) for c in group)
        relatives = sorted(abs(c.relative) for c in group)
        last = min(int(len(group) * 0.9), len(group) - 1)
        result.append({
            "table": table, "category": category, "rows": len(group), "not_modelled": sum(not c.known for c in group),
            "median_mib": median(errors), "p90_mib": errors[last], "worst_mib": errors[-1],
            "signed_mib": sum(c.error for c in group) / len(group),
            "median_relative": median(relatives), "p90_relative": relatives[last], "worst_relative": relatives[-1],
        })  # fmt: skip
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True, help="folder with the tables")
    parser.add_argument("--models", type=Path, required=True, help="configurations of their models")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--plot", type=Path, help="write predicted against measured to this .svg or .png")
    parser.add_argument("--bars", action="store_true", help="exit 4 when a bar is missed")
    args = parser.parse_args()
    if not args.truth.is_dir() or not args.models.is_file():
        parser.error(f"{args.models if args.truth.is_dir() else args.truth} is not there")
    models = Models(args.models)
    compared = [c for table in TABLES.values() for c in table(models, args.truth)]
    failures = {bar.name: why for bar in BARS if (why := missed(bar, compared)) is not None}
    if args.plot:
        from accuracy_plot import write_plot

        write_plot(args.plot, [(c.truth, c.predicted, f"{c.table} {c.category}") for c in compared])
    _show(compared, failures, as_json=args.json)
    return CHECK_FAILED if args.bars and failures else 0


def _show(compared: list[Compared], failures: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        told = [{**asdict(c), "error": c.error, "relative": c.relative if c.truth else None} for c in compared]
        print(json.dumps({"rows": told, "summary": _finite(summary(compared)), "bars_missed": failures}, indent=1))
        return
    for c in compared:
        print(f"{c.table:14} {c.category:8} {c.predicted:12.2f} {c.truth:12.2f} {c.error:+10.2f}  {c.what}")
    print(f"\n{'table':14} {'category':8} {'rows':>5} {'median':>8} {'90 %':>8} {'worst':>9} {'signed':>8}   relative")
    for row in summary(compared):
        print(f"{row['table']:14} {row['category']:8} {row['rows']:5} {row['median_mib']:8.2f} {row['p90_mib']:8.2f} "
              f"{row['worst_mib']:9.2f} {row['signed_mib']:+8.2f}   {row['median_relative']:.2%} "
              f"{row['p90_relative']:.2%} {row['worst_relative']:.2%}")  # fmt: skip
    for bar in BARS:
        print(f"{'missed' if bar.name in failures else 'met   '}  {bar.name}  {failures.get(bar.name, '')}".rstrip())


def _finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if v == float("inf") else v for k, v in row.items()} for row in rows]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
