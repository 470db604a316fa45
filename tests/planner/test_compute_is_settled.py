"""What the search takes for granted of the memory model: compute buffers of neighbouring placements are alike, and an
outline is never above the exact model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantplan.memory.estimate import HOST, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.read import read_model
from quantplan.planner.outline import frame_of, outline_of
from quantplan.quant.presets import apply_preset

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-3-12b-it",
    "Qwen/Qwen3-30B-A3B",
    "tiiuae/Falcon-H1-7B-Instruct",
)


@pytest.mark.parametrize("name", MODELS)
def test_neighbours_have_like_buffers_and_outlines_are_exact_without_them(name: str) -> None:
    facts = read_model(name)
    prepared = prepare(facts, apply_preset(facts.tensors, facts.metadata, "Q4_K_M").tensors)
    ctx = ContextParams(n_ctx=8192, n_parallel=1, cache_ram_bytes=0)
    outline = outline_of(prepared)
    frame = frame_of(outline, ctx)
    n = facts.n_layer
    before = None
    for n_gpu_layers in range(n // 2, n // 2 + 6):
        found = estimate_memory(prepared, ctx, Placement(devices=("CUDA0",), n_gpu_layers=n_gpu_layers))
        gpu, host = found.device("CUDA0"), found.device(HOST)
        n_host = n + 1 - n_gpu_layers
        assert frame.on_gpu(n_host, n + 1, 0) == gpu.model_bytes + gpu.context_bytes
        assert frame.on_host(n_host, 0) == host.model_bytes + host.context_bytes + host.output_bytes
        if before is not None:
            assert gpu.compute_bytes >= 0.9 * before
            assert before >= 0.9 * gpu.compute_bytes
        before = gpu.compute_bytes


def test_outlines_with_experts_on_the_host() -> None:
    facts = read_model("Qwen/Qwen3-30B-A3B")
    prepared = prepare(facts, apply_preset(facts.tensors, facts.metadata, "Q4_K_M").tensors)
    ctx = ContextParams(n_ctx=8192, n_parallel=1, cache_ram_bytes=0)
    frame = frame_of(outline_of(prepared), ctx)
    where = Placement(devices=("CUDA0", "CUDA1"), n_gpu_layers=40, tensor_split=(25.0, 15.0))
    for n_cpu_moe in (0, 9, 20, 48):
        found = estimate_memory(prepared, ctx, replace(where, n_cpu_moe=n_cpu_moe)).devices
        first = facts.n_layer + 1 - 40
        assert frame.on_gpu(first, first + 25, n_cpu_moe) == found[0].model_bytes + found[0].context_bytes
        assert frame.on_gpu(first + 25, first + 40, n_cpu_moe) == found[1].model_bytes + found[1].context_bytes
        host = found[2]
        assert frame.on_host(first, n_cpu_moe) == host.model_bytes + host.context_bytes + host.output_bytes
