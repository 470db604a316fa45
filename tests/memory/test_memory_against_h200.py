"""The arithmetic against llama-fit-params on an H200, with settings and models outside the truth tables."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import PreparedModel, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import FactsOrigin
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.quant.presets import apply_preset
from quantplan.units import MIB

DATA = Path(__file__).parent.parent / "data"


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((DATA / name).read_text().splitlines()))


ROWS, TWO_GPUS, SERVED = _rows("fit_h200.csv"), _rows("fit_2xh200.csv"), _rows("serve_h200.csv")
# Mamba-2 layers on the GPU with their state kept on the host: 10 MiB low, the placement of the copies differs.
KNOWN, KNOWN_LOW_MIB = {("Mamba2-2.7B", "-c 8192 -ngl 20 -fa on -nkvo")}, 10
SWITCHES = {"-cmoe": ("placement", "cpu_moe", True), "-nkvo": ("ctx", "kv_offload", False)}
VALUES = {
    "-c": ("ctx", "n_ctx"), "-ub": ("ctx", "n_ubatch"), "-b": ("ctx", "n_batch"), "-np": ("ctx", "n_parallel"),
    "-ngl": ("placement", "n_gpu_layers"), "-ncmoe": ("placement", "n_cpu_moe"),
}  # fmt: skip


@cache
def _prepared(configs: Path, name: str) -> PreparedModel:
    config = next(entry["config"] for entry in json.loads(configs.read_text()) if entry["name"] == name)
    header = header_from_config(config, path=name)
    facts = facts_from_metadata(header.metadata, header.tensors, id=name, origin=FactsOrigin.CONFIG)
    return prepare(facts, apply_preset(facts.tensors, facts.metadata, "Q4_K_M").tensors)


def _configuration(args: str) -> tuple[ContextParams, Placement]:
    given: dict[str, dict[str, object]] = {"ctx": {"n_parallel": 1}, "placement": {"devices": ("CUDA0",)}}
    words = args.split()
    while words:
        flag = words.pop(0)
        if flag in SWITCHES:
            kind, name, value = SWITCHES[flag]
            given[kind][name] = value
        elif flag == "--no-kv-unified":
            given["ctx"]["kv_unified"] = False
        elif flag == "-ts":
            given["placement"]["tensor_split"] = tuple(float(share) for share in words.pop(0).split(","))
            given["placement"]["devices"] = ("CUDA0", "CUDA1")
        elif flag in ("-ctk", "-ctv"):
            given["ctx"][f"type_{flag[-1]}"] = words.pop(0).upper()
        elif flag == "-fa":
            given["ctx"]["flash_attn"] = words.pop(0) != "off"
        else:
            kind, name = VALUES[flag]
            given[kind][name] = int(words.pop(0))
    return ContextParams(**given["ctx"]), Placement(**given["placement"])  # type: ignore[arg-type]


@pytest.mark.parametrize("model", sorted({row["model"] for row in ROWS}))
def test_every_row_is_right_to_the_mib(model: str, shared: Path) -> None:
    prepared = _prepared(shared / "facts" / "model_configs.json", model)
    wrong = []
    for row in (row for row in ROWS if row["model"] == model):
        ctx, placement = _configuration(row["args"])
        said = estimate_memory(prepared, ctx, placement, reserve="fit-params", whole_graph=True).device(row["device"])
        got = [said.model_bytes // MIB, said.context_bytes // MIB, said.compute_bytes // MIB]
        want = [int(row[f"{part}_mib"]) for part in ("model", "context", "compute")]
        allowed = KNOWN_LOW_MIB if (model, row["args"]) in KNOWN else 0
        if any(abs(g - w) > allowed for g, w in zip(got, want, strict=True)):
            wrong.append((row["args"], row["device"], want, got))
    assert wrong == []


@pytest.mark.parametrize("model", ["Qwen3-8B", "Gemma-2-9B", "gpt-oss-20b", "Falcon-H1-7B", "LFM2-1.2B", "Yi-34B"])
def test_a_few_layers_stand_for_all(model: str, shared: Path) -> None:
    prepared = _prepared(shared / "facts" / "model_configs.json", model)
    for args in ("-c 8192 -ngl 99", "-c 8192 -ngl 13", "-c 20480 -ngl 99 -ub 1024 -np 4 -ctk q8_0 -ctv q8_0"):
        ctx, placement = _configuration(args)
        whole = estimate_memory(prepared, ctx, placement, whole_graph=True)
        few = estimate_memory(prepared, ctx, placement)
        for a, b in zip(whole.devices, few.devices, strict=True):
            assert abs(a.compute_bytes - b.compute_bytes) <= 16 * MIB, (args, a.name)


@pytest.mark.parametrize("model", sorted({row["model"] for row in TWO_GPUS}))
def test_two_gpus_are_right_to_the_mib(model: str, shared: Path) -> None:
    prepared = _prepared(shared / "facts" / "model_configs.json", model)
    for row in (row for row in TWO_GPUS if row["model"] == model):
        ctx, placement = _configuration(row["args"])
        said = estimate_memory(prepared, ctx, placement, reserve="fit-params", whole_graph=True).device(row["device"])
        got = [said.model_bytes // MIB, said.context_bytes // MIB, said.compute_bytes // MIB]
        assert got == [int(row[f"{part}_mib"]) for part in ("model", "context", "compute")], row


@pytest.mark.parametrize("model", sorted({row["model"] for row in SERVED}))
def test_every_buffer_of_a_real_start_is_right(model: str, shared: Path) -> None:
    prepared = _prepared(shared / "facts" / "model_configs.json", model)
    for row in (row for row in SERVED if row["model"] == model):
        ctx, placement = _configuration(row["args"])
        if "-np" not in row["args"]:
            ctx = replace(ctx, n_parallel=None)
        gpu, host = estimate_memory(
            prepared, ctx, placement, whole_graph=True, driver=(driver_context("NVIDIA H200"),)
        ).devices
        printed = re.findall(r"(\S+) (model|KV|RS|compute|output) buffer size = ([\d.]+) MiB", row["buffers"])
        for n_bytes, devices, kinds in (
            (gpu.model_bytes, ("CUDA0",), ("model",)),
            (gpu.context_bytes, ("CUDA0",), ("KV", "RS")),
            (gpu.compute_bytes, ("CUDA0",), ("compute",)),
            (host.context_bytes, ("CPU",), ("KV", "RS")),
            (host.compute_bytes, ("CUDA_Host",), ("compute",)),
            (host.output_bytes, ("CUDA_Host",), ("output",)),
            # the range that stays mapped depends on the file's order, which was the converter's, not llama-quantize's
            *(
                [(host.mapped_bytes, ("CPU_Mapped",), ("model",))]
                if "moe" not in row["args"] and "-ngl 9 " not in row["args"]
                else []
            ),
        ):
            want = sum(float(size) for device, kind, size in printed if device in devices and kind in kinds)
            assert n_bytes / MIB == pytest.approx(want, abs=0.02), (row["args"], devices, kinds)
        assert gpu.total_bytes / MIB == pytest.approx(float(row["used_mib"]), abs=4)
