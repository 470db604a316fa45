"""Measured rows as the speed model sees them: model, preset, card, depth. For calibrate_speed and speed_accuracy.

The rule for public rows that are held to a bar ("chosen"), in this order; a row that fails one is reported, not barred:

 1. decode speed, with a context stated (n_ctx);
 2. the depth is known: the note says how long the prompt was ("prompt 512 out 128", "2015-token prompt"; 0 does not
    count), or the row is a llama-bench one ("tg128", with n_ctx as its depth);
 3. one card, of known bandwidth: the device's name is found in data/gpus.json;
 4. llama.cpp itself on that card: not a fork, an unmerged change or another engine (ipex-llm, LM Studio), and a backend
    is stated;
 5. one stream, no speculative decoding: no MTP, draft, or several slots in the note;
 6. everything on the card: no -ot, --n-cpu-moe, --fit, -ngl or "Host" in the note, and the preset's weights and cache
    together are at most 95 % of the card's memory;
 7. the model is one whose configuration is known (data/catalog.json, scripts/speed_models.json) and the preset one of
    llama-quantize's; the dynamic ones (UD-Q4_K_XL) count as their nearest (Q4_K_M).
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from quantplan.artifact.plan_file import Figure
from quantplan.errors import QuantplanError
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.gpu_table import GpuSpec, find_gpu
from quantplan.hardware.profiles import load_profile
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.catalog import entries
from quantplan.model.facts import ModelFacts
from quantplan.model.read import read_model
from quantplan.planner.calibration import Calibration
from quantplan.planner.speed import PreparedSpeed, SpeedHost, predict, predict_values, prepare_speed, speed_host
from quantplan.quant.presets import PRESETS, apply_preset

ROOT = Path(__file__).resolve().parent.parent
TRUTH = [Path(os.environ.get("QUANTPLAN_SHARED", ROOT.parent / "shared")) / "truth"]  # a script may point elsewhere


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `why_not` says which part of the rule it fails; empty for rows held to the bar."""

    source: str
    model: str
    quant: str
    device: str
    backend: str
    kind: str  # decode | prefill
    n_depth: int
    measured: float
    n_ubatch: int = 512
    n_batch: int = 2048
    n_prompt: int = 512
    type_k: str = "F16"
    type_v: str = "F16"
    args: str = ""
    same_experts: bool = False
    n_active: int = 1  # slots that decode at once: `measured` is all of them together
    kv_offload: bool = True
    why_not: str = ""

    @property
    def host_model(self) -> str:
        return f"{self.device}|{self.model}"


# ---- models


@cache
def extra_models() -> tuple[dict, ...]:
    return tuple(json.loads((Path(__file__).parent / "speed_models.json").read_text())["models"])


@cache
def facts_of(model: str) -> ModelFacts:
    for extra in extra_models():
        if extra["id"] == model:
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "config.json").write_text(json.dumps(extra["config"]))
                return read_model(folder)
    return read_model(model)


_FINETUNES = {"deepseek-r1-distill-qwen-7b": "Qwen2.5-7B", "deepseek-r1-distill-qwen-32b": "Qwen2.5-32B",
              "deepseek-r1-distill-llama-8b": "Llama-3.1-8B", "meta-llama-3.1-8b": "Llama-3.1-8B",
              "llama-3-8b": "Llama-3.1-8B", "qwen2.5-coder-7b": "Qwen2.5-7B", "qwen2.5-coder-32b": "Qwen2.5-32B",
              "qwen3-coder-30b-a3b": "Qwen3-30B-A3B", "mistral-7b": "Mistral-7B-v0.3", "lfm2.5-1.2b": "LFM2-1.2B",
              "mistral-nemo": "Mistral-Nemo-12B", "phi-4-q": "Phi-4", "phi-4-reasoning": "Phi-4",
              "granite-3.1-8b": "Granite-3.3-8B", "granite-3.2-8b": "Granite-3.3-8B",
              "phi-4-mini": "microsoft/Phi-4-mini-instruct",
              "deepseek-coder-v2-lite": "DeepSeek-V2-Lite", "deepseek-r1-0528-qwen3-8b": "Qwen3-8B"}  # fmt: skip


@cache
def model_of(file: str) -> str | None:
    """The id of the configuration that a file's name means, or None; the longest known name in it wins."""
    low = file.lower().replace("_", "-")
    names = {entry.name.lower(): entry.name for entry in entries()} | _FINETUNES
    names |= {match: extra["id"] for extra in extra_models() for match in extra["match"]}
    found = [name for name in names if re.search(rf"(^|[^a-z0-9]){re.escape(name)}([^a-z0-9.]|\.q|\.gguf|$)", low)]
    if "vl-" in low or "-vl" in low or "qwen3vl" in low:
        return None
    return names[max(found, key=len)] if found else None


_DYNAMIC = re.compile(r"^(?:UD-)?(I?Q\d)(_K)?_XL$")
_NEAREST = {"Q2_K_XL": "Q2_K", "Q3_K_XL": "Q3_K_M", "Q4_K_XL": "Q4_K_M", "Q5_K_XL": "Q5_K_M", "Q6_K_XL": "Q6_K",
            "Q8_K_XL": "Q8_0", "Q6_K_L": "Q6_K", "MXFP4": "MXFP4_MOE", "FP16": "F16"}  # fmt: skip


def preset_of(quant: str, file: str) -> str | None:
    """llama-quantize's preset, or the nearest to a dynamic one; None for others'."""
    name = quant.upper().removeprefix("UD-").replace("-QAT", "").replace(" (QAT)", "").strip()
    name = _NEAREST.get(name, name)
    return name if name in PRESETS else None


@cache
def prepared(model: str, quant: str, same_experts: bool = False) -> PreparedSpeed:
    facts = facts_of(model)
    if model.endswith(("gpt-oss-20b", "gpt-oss-120b")) and quant != "BF16":
        quant = "MXFP4_MOE"  # every public file of these keeps the experts as published
    return prepare_speed(facts, apply_preset(facts.tensors, facts.metadata, quant).tensors, same_experts=same_experts)


# ---- cards

_CARDS = {"nvidia-gb10": "GB10", "Strix Halo 8060S 128GB": "Radeon 8060S", "Apple M4 Pro (48 GB)": "Apple M4 Pro",
          "Apple M4 Pro (24 GB)": "Apple M4 Pro", "apple-m4-pro": "Apple M4 Pro",
          "Apple M1 Max (64 GB)": "Apple M1 Max",
          "M1 Max 64GB": "Apple M1 Max", "M3 Max 48GB": "Apple M3 Max 40-core", "T4 (16 GB)": "Tesla T4",
          "Apple M5 24GB": "Apple M5"}  # fmt: skip


@cache
def card_of(device: str) -> str | None:
    """The card's name in the table, or None."""
    if device in _CARDS:
        return _CARDS[device]
    plain = re.sub(r"\s*\(?\d+\s*GB\)?", "", device).strip()
    size = re.search(r"(\d+)\s*GB", device)
    for name in (device.replace("-", " "), f"{plain} {size[1]} GB" if size else plain, plain.replace("-", " ")):
        try:
            return find_gpu(name).name
        except QuantplanError:
            continue
    return None


@cache
def host_of(device: str, args: str) -> HostFacts:
    """The host of a row's device: a card alone, a CPU alone, or the H200 with its CPU."""
    cpu_name = next((name for name in HOSTS if name in device), None)
    host = load_profile("h200" if "H200" in device else "cpu+64GB" if cpu_name else device)
    if cpu_name is None:
        return host
    threads, bandwidth, simd = HOSTS[cpu_name]
    given = re.search(r"-t (\d+)", args)
    cpu = replace(host.cpu, n_threads=int(given[1]) if given else threads, simd=simd)
    return replace(host, cpu=cpu, ram=replace(host.ram, bandwidth_bytes_per_s=bandwidth), profile=None)


def spec_of(card: str) -> GpuSpec:
    return find_gpu(card)


# ---- rows


def shared_rows(name: str) -> list[dict[str, str]]:
    path = TRUTH[0] / name
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def h200_rows() -> Iterator[Row]:
    """speed_h200.csv: llama-bench on weightless models; mixtures pick the same experts for every token there."""
    for row in shared_rows("speed_h200.csv"):
        prefill = int(row["n_prompt"]) > 0
        yield Row(
            source="speed_h200.csv", model=row["model"], quant=row["quant"], device=row["device"],
            backend="CUDA" if "H200" in row["device"] else "CPU",
            kind="prefill" if prefill else "decode",
            n_depth=int(row["n_depth"]) + (0 if prefill else int(row["n_gen"]) // 2),
            measured=float(row["tokens_per_s"]), args=row["args"], same_experts=True, n_prompt=int(row["n_prompt"]),
        )  # fmt: skip


# Hosts of our own runs: engine threads, RAM bandwidth in bytes a second and how it was measured, CPU features
HOSTS = {
    "CPU 16 cores": (16, 72_000_000_000, ("avx2", "avx512f")),  # memcpy, as ../shared/facts/estimation.md says
    "CPU 2 cores": (2, 38_600_000_000, ("avx2", "avx512f")),  # quantplan hardware --measure: a sum, best of 11
}


def more_rows(path: Path | None = None) -> Iterator[Row]:
    """data/speed_measured.csv: our own llama-bench runs on weightless models, with every flag that matters."""
    with (path or ROOT / "data" / "speed_measured.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            prefill = int(row["n_prompt"]) > 0
            args = f"-ngl {row['n_gpu_layers']} -ncmoe {row['n_cpu_moe']} -t {row['n_threads']}"
            yield Row(
                source="speed_measured.csv", model=row["model"], quant=row["quant"], device=row["device"],
                backend="CUDA" if "H200" in row["device"] else "CPU", kind="prefill" if prefill else "decode",
                n_depth=int(row["n_depth"]) + (0 if prefill else int(row["n_gen"]) // 2),
                measured=float(row["tokens_per_s"]), n_batch=int(row["n_batch"]), n_ubatch=int(row["n_ubatch"]),
                type_k=row["type_k"].upper(), type_v=row["type_v"].upper(), args=args, same_experts=True,
                n_prompt=int(row["n_prompt"]), kv_offload=row["no_kv_offload"] != "True", n_active=int(row["n_active"]),
            )  # fmt: skip


_PROMPT = re.compile(r"prompt (\d+) out (\d+)|(\d+)-token prompt(?:, (\d+) decoded)?")
_NOT_ALONE = re.compile(r"\bMTP\b(?! \(2\))|MTP on|draft|np auto|-np \d|rs_seq", re.IGNORECASE)
_NOT_ALL = re.compile(r"cpu-moe|-ot\b|--fit\b|-fitt|\bHost \d|probes|half the weights|on host|-ngl", re.IGNORECASE)
_NOT_LLAMA = re.compile(r"fork|\+pr\d|ipex|LM Studio|HSA override|SYCL", re.IGNORECASE)
_BACKENDS = {"cuda": "CUDA", "rocm": "ROCm", "rocm/hip": "ROCm", "vulkan": "Vulkan", "metal": "Metal",
             "llama.cpp": "", "vulkan/rocm (not stated)": ""}  # fmt: skip
_KV = {"": "F16", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "bf16": "BF16"}


def public_rows() -> Iterator[Row]:
    """measured_public.csv, decode and prefill, each with the first reason against the bar."""
    for row in shared_rows("measured_public.csv"):
        if row["category"] not in ("decode_tps", "prefill_tps"):
            continue
        model, quant = model_of(row["model_file"]), preset_of(row["quant"], row["model_file"])
        card = card_of(row["device"])
        if model is None or quant is None or card is None:
            continue
        if spec_of(card).vendor == "nvidia" and row["backend"].lower() not in _BACKENDS:
            backend = "CUDA"
        else:
            backend = _BACKENDS.get(row["backend"].lower(), "")
        vendor = spec_of(card).vendor
        backend = backend or {"nvidia": "CUDA", "amd": "ROCm", "intel": "Vulkan", "apple": "Metal"}[vendor]
        depth, n_prompt = depth_of(row)
        kind = row["category"].removesuffix("_tps")
        yield Row(
            source="measured_public.csv", model=model, quant=quant, device=card, backend=backend,
            kind=kind, n_depth=depth if kind == "decode" else 0, measured=float(row["value"]), n_prompt=n_prompt or 512,
            type_k=_KV.get(row["kv_type"], "F16"), type_v=_KV.get(row["kv_type"], "F16"),
            why_not=_why_not(row, kind, model, quant, card, depth),
        )  # fmt: skip


def depth_of(row: dict[str, str]) -> tuple[int, int]:
    """(the mean depth while decoding, the prompt); 150 where nothing is said: llmfit decodes 300 after a short one."""
    match = _PROMPT.search(row["note"])
    if match:
        n_prompt, n_out = int(match[1] or match[3]), int(match[2] or match[4] or 0)
        return n_prompt + n_out // 2, n_prompt
    if row["n_ctx"] and re.match(r"tg(\d+)", row["note"]):
        return int(row["n_ctx"]) + int(re.match(r"tg(\d+)", row["note"])[1]) // 2, 0
    prefill = re.match(r"pp(\d+)", row["note"])
    return 150, int(prefill[1]) if prefill else 0


def _why_not(row: dict[str, str], kind: str, model: str, quant: str, card: str, depth: int) -> str:
    note, match = row["note"], _PROMPT.search(row["note"])
    spec = spec_of(card)
    bench = re.match(r"tg\d+", note) and row["n_ctx"]
    checks = (
        (kind != "decode" or not row["n_ctx"], "no context stated"),
        (not bench and (match is None or int(match[1] or match[3]) == 0), "depth not stated"),
        (_NOT_LLAMA.search(note) or _NOT_LLAMA.search(row["backend"]) or "backend not stated" in row["backend"]
         or "not stated" in row["backend"] or row["backend"].lower() == "llama.cpp", "another engine or no backend"),
        (_NOT_ALONE.search(note), "speculative or several slots"),
        (_NOT_ALL.search(note) or not fits(model, quant, spec, row["n_ctx"]), "not all on the card"),
    )  # fmt: skip
    return next((why for fails, why in checks if fails), "")


def fits(model: str, quant: str, spec: GpuSpec, n_ctx: str, *, share: float = 0.95) -> bool:
    """Weights and an f16 cache of the stated context in 95 % of the card."""
    weights = sum(size for piece in prepared(model, quant).pieces for _, size in piece.nbytes)
    facts = facts_of(model)
    cells = min(int(n_ctx or 0), 32768)
    cache = sum(2 * (la.n_embd_head_k + la.n_embd_head_v) * la.n_head_kv * (min(cells, 4096) if la.is_swa else cells)
                for la in facts.layers if la.has_kv)  # fmt: skip
    return weights + cache <= share * spec.memory_bytes


def context_of(row: Row) -> ContextParams:
    """One slot; a prompt shorter than the micro-batch is one of its own length."""
    n_ubatch = min(row.n_ubatch, row.n_prompt) if row.kind == "prefill" else row.n_ubatch
    return ContextParams(n_ctx=max(row.n_depth + row.n_prompt + 512, 1024), n_parallel=1, n_ubatch=n_ubatch,
                         n_batch=row.n_batch, type_k=row.type_k, type_v=row.type_v,
                         kv_offload=row.kv_offload)  # fmt: skip


def placement_of(row: Row, devices: tuple[str, ...]) -> Placement:
    """What the row's arguments say: -ngl, -ncmoe."""
    layers, moe = re.search(r"-ngl (\d+)", row.args), re.search(r"-ncmoe (\d+)", row.args)
    if not devices:
        return Placement()
    return Placement(devices=devices, n_gpu_layers=int(layers[1]) if layers and int(layers[1]) < 99 else None,
                     n_cpu_moe=int(moe[1]) if moe else 0)  # fmt: skip


def prepared_of(row: Row) -> PreparedSpeed:
    return prepared(row.model, row.quant, row.same_experts)


def setting_of(row: Row, calibration: Calibration, backend: str | None = None) -> tuple[SpeedHost, Placement, int]:
    """Host, placement and depth of a row. `backend` names the constants where a card has another than usual."""
    facts = host_of(row.device, row.args)
    host = speed_host(facts, calibration)
    if backend and facts.gpus:
        constants = calibration.backends[backend]
        devices = (replace(d, constants=constants) if d.kind == "gpu" else d for d in host.devices)
        host = replace(host, devices=tuple(devices))
    depth = row.n_depth + (max(row.n_prompt - row.n_ubatch, 0) // 2 if row.kind == "prefill" else 0)
    return host, placement_of(row, tuple(gpu.name for gpu in facts.gpus)), depth


def predicted(row: Row, calibration: Calibration, backend: str | None = None) -> float:
    """Tokens a second of a row."""
    host, placement, depth = setting_of(row, calibration, backend)
    decode, prefill = predict_values(prepared_of(row), context_of(row), placement, host, n_depth=depth,
                                     n_active=row.n_active)  # fmt: skip
    return decode if row.kind == "decode" else prefill


def figure_of(row: Row, calibration: Calibration) -> Figure:
    """Tokens a second of a row with their range, as the product says them."""
    backend = None if row.backend == "CPU" else row.backend
    host, placement, depth = setting_of(row, calibration, backend)
    speed = predict(prepared_of(row), context_of(row), placement, host, n_depth=depth, n_active=row.n_active)
    figure = speed.decode if row.kind == "decode" else speed.prefill
    assert figure is not None
    return figure
