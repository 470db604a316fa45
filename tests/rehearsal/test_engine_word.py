"""The engine's word against the arithmetic: a new build that changes a rule breaks a test here that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantplan.errors import CannotExpress, HolesFilled
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST, Origin, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model import catalog
from quantplan.model.facts import FactsOrigin, ModelFacts, TensorFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.quant.presets import apply_preset
from quantplan.rehearsal.engine_word import ask_fit_params, ask_server, weightless_file
from quantplan.rehearsal.holes import require_holes
from quantplan.units import MIB

HOST_ONLY = Placement()
RULES = {
    "cells are padded to 256": ContextParams(n_ctx=5000, n_parallel=1),
    "each of several slots has its own cells": ContextParams(n_ctx=8192, n_parallel=3, kv_unified=False),
    "quantized caches are rotated": ContextParams(n_ctx=8192, n_parallel=1, type_k="Q4_0", type_v="Q4_0"),
    "without flash attention scores are kept": ContextParams(n_ctx=4096, n_parallel=1, flash_attn=False),
    "logits of the whole micro-batch": ContextParams(n_ctx=4096, n_parallel=1, n_ubatch=1024, n_batch=1024),
    "a short context shortens the micro-batch": ContextParams(n_ctx=256, n_parallel=1),
    "sliding windows may be kept whole": ContextParams(n_ctx=16384, n_parallel=1, swa_full=True),
}
MODELS = ("Llama-3.2-1B", "Qwen3-0.6B", "Gemma-3-1B", "LFM2-1.2B", "Mamba-2.8B", "gpt-oss-20b", "DeepSeek-V2-Lite",
          "Qwen3-Next-80B-A3B", "Granite-4.0-H-Small", "Gemma-2-9B", "Command-R7B", "GLM-4.5-Air")  # fmt: skip


def facts_of(name: str) -> ModelFacts:
    entry = next(entry for entry in catalog.entries() if entry.name == name)
    header = header_from_config(entry.config, path=name)
    return facts_from_metadata(header.metadata, header.tensors, id=name, origin=FactsOrigin.CATALOG)


def at(facts: ModelFacts, quant: str) -> tuple[TensorFacts, ...]:
    return apply_preset(facts.tensors, facts.metadata, quant).tensors


@pytest.mark.tools
@pytest.mark.parametrize("rule", RULES)
def test_fit_params_holds_to_the_rule(rule: str, toolchain: Toolchain, tmp_path: Path) -> None:
    ctx = RULES[rule]
    wrong = []
    for name in MODELS:
        facts = facts_of(name)
        said = estimate_memory(prepare(facts), ctx, HOST_ONLY, reserve="fit-params", whole_graph=True).device(HOST)
        with weightless_file(facts, facts.tensors, folder=tmp_path) as file:
            told = ask_fit_params(toolchain, file, ctx, HOST_ONLY).devices[0]
        pairs = [(said.model_bytes, told.model_bytes), (said.context_bytes, told.context_bytes),
                 (said.compute_bytes, told.compute_bytes)]  # fmt: skip
        if any(a // MIB != b // MIB for a, b in pairs):
            wrong.append((name, [(round(a / MIB, 2), b // MIB) for a, b in pairs]))
    assert wrong == [], rule


@pytest.mark.tools
@pytest.mark.slow
def test_fit_params_accepts_every_model_of_the_catalog(toolchain: Toolchain, tmp_path: Path) -> None:
    ctx, wrong = ContextParams(n_ctx=8192, n_parallel=1), []
    for entry in catalog.entries():
        if entry.folder is not None:
            continue
        facts = facts_of(entry.name)
        found = estimate_memory(prepare(facts), ctx, HOST_ONLY, reserve="fit-params", whole_graph=True)
        said = found.device(HOST)
        with weightless_file(facts, facts.tensors, folder=tmp_path) as file:
            told = ask_fit_params(toolchain, file, ctx, HOST_ONLY)
        assert told.origin is Origin.MEASURED
        line = told.devices[0]
        same = said.context_bytes // MIB == line.context_bytes // MIB
        if found.compute_known:
            same = same and said.compute_bytes // MIB == line.compute_bytes // MIB
        elif facts.arch != "bert":  # a graph that is not modelled: a lower bound, and said so
            same = same and said.compute_bytes <= line.compute_bytes
        if not same:
            wrong.append((entry.name, said, line))
    assert wrong == []


SPLIT_4K = ContextParams(n_ctx=4096, n_parallel=2, kv_unified=False, cache_ram_bytes=0)
UNIFIED_4K = ContextParams(n_ctx=4096, cache_ram_bytes=0)
SPLIT_16K = ContextParams(n_ctx=16384, n_parallel=2, kv_unified=False, cache_ram_bytes=0)
UNIFIED_16K = ContextParams(n_ctx=16384, cache_ram_bytes=0)
ALL_STARTS = [(quant, ctx) for quant in ("Q4_K_M", "Q8_0", "Q4_0") for ctx in (SPLIT_4K, UNIFIED_16K)]
# each preset, context length and way of sharing once a model: a start takes seconds
SOME_STARTS = [("Q4_K_M", UNIFIED_16K), ("Q8_0", SPLIT_16K), ("Q4_0", UNIFIED_4K)]


@pytest.mark.tools
@pytest.mark.parametrize(
    ("name", "starts"),
    [("Llama-3.2-1B", ALL_STARTS)]
    + [(name, SOME_STARTS) for name in ("Llama-3.2-3B", "SmolLM3-3B", "Qwen3-0.6B", "Gemma-3-1B", "LFM2-1.2B")],
)
def test_a_cpu_server_takes_what_was_calculated(
    name: str, starts: list[tuple[str, ContextParams]], toolchain: Toolchain, tmp_path: Path
) -> None:
    from quantplan.hardware.detect import detect_host
    from quantplan.rehearsal.ask import repack_features

    facts = facts_of(name)
    simd = repack_features(detect_host())
    for quant, ctx in starts:
        tensors = at(facts, quant)
        said = estimate_memory(prepare(facts, tensors), ctx, HOST_ONLY, simd=simd, whole_graph=True).device(HOST)
        with weightless_file(facts, tensors, synthetic=True, folder=tmp_path) as file:
            word = ask_server(toolchain, file, ctx, HOST_ONLY)
        told = word.memory.device(HOST)
        what = (quant, ctx.n_ctx, ctx.unified)
        for part in ("mapped_bytes", "repacked_bytes", "context_bytes"):
            assert abs(getattr(said, part) - getattr(told, part)) < MIB, (what, part)
        assert abs(said.compute_bytes - told.compute_bytes) < max(8 * MIB, told.compute_bytes // 20), what
        assert word.rss_anon_bytes is not None
        assert abs(said.ready_anonymous_bytes - word.rss_anon_bytes) < 64 * MIB, what


def test_what_fit_params_cannot_express_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(CannotExpress, match="several slots sharing one cache"):
        ask_fit_params(None, tmp_path, ContextParams(n_ctx=4096), HOST_ONLY)  # type: ignore[arg-type]


def test_a_folder_on_a_disk_keeps_holes(tmp_path: Path) -> None:
    try:
        require_holes(tmp_path)
    except HolesFilled as error:  # a temporary folder on tmpfs is refused, which is right too
        assert "fills holes" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_tmpfs_is_refused_because_reading_fills_holes() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs here to try")
    with pytest.raises(HolesFilled, match="read"):
        require_holes(shm)
