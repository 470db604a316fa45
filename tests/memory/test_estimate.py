"""Memory by device: exact expectations, properties, refusals, and the time it takes."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.errors import BadValue
from quantplan.memory.estimate import HOST, PreparedModel, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model import catalog
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.quant.presets import apply_preset
from quantplan.units import MIB

GPU = Placement(devices=("CUDA0",))


@cache
def facts_of(name: str) -> ModelFacts:
    entry = next(entry for entry in catalog.entries() if entry.name == name)
    header = header_from_config(entry.config, path=name)
    return facts_from_metadata(header.metadata, header.tensors, id=name, origin=FactsOrigin.CATALOG)


@cache
def prepared(name: str, quant: str = "Q4_K_M") -> PreparedModel:
    facts = facts_of(name)
    return prepare(facts, apply_preset(facts.tensors, facts.metadata, quant).tensors)


@pytest.mark.parametrize(
    ("model", "ctx", "mib"),
    [
        ("Qwen3-8B", ContextParams(n_ctx=8192, n_parallel=1), 1152),
        ("Qwen3-8B", ContextParams(n_ctx=8192, n_parallel=1, type_k="Q8_0", type_v="Q8_0"), 612),
        ("DeepSeek-V3", ContextParams(n_ctx=32768, n_parallel=1), 2196),
        ("gpt-oss-20b", ContextParams(n_ctx=8192, n_parallel=1), 210),
        ("Falcon-H1-7B", ContextParams(n_ctx=8192, n_parallel=1), 486),
    ],
)
def test_context_memory_is_known_to_the_mib(model: str, ctx: ContextParams, mib: int) -> None:
    said = estimate_memory(prepared(model), ctx, GPU)
    assert said.device("CUDA0").context_bytes // MIB == mib


def test_the_embedding_stays_on_the_host_and_serves_as_head_on_the_gpu() -> None:
    said = estimate_memory(prepared("Llama-3.2-1B"), ContextParams(n_ctx=8192, n_parallel=1), GPU)
    assert (said.device("CUDA0").model_bytes // MIB, said.device(HOST).model_bytes // MIB) == (762, 205)


def test_llama_server_printed_these_buffers() -> None:
    said = estimate_memory(prepared("Llama-3.1-8B"), ContextParams(n_ctx=32768, n_parallel=None), GPU, whole_graph=True)
    gpu, host = said.devices
    assert [round(n / MIB, 2) for n in (gpu.model_bytes, gpu.context_bytes, gpu.compute_bytes)] == [
        4403.49,
        4096.0,
        140.01,
    ]
    assert [round(n / MIB, 2) for n in (host.compute_bytes, host.output_bytes)] == [48.01, 1.96]


@settings(max_examples=25, deadline=None)
@given(layers=st.integers(0, 40), n_cpu_moe=st.integers(0, 48))
def test_offloading_conserves_the_weights(layers: int, n_cpu_moe: int) -> None:
    model, ctx = prepared("Qwen3-30B-A3B"), ContextParams(n_ctx=4096, n_parallel=1)
    whole = sum(part.nbytes for part in model.parts if not part.is_duplicate)
    said = estimate_memory(model, ctx, replace(GPU, n_gpu_layers=layers, n_cpu_moe=n_cpu_moe))
    assert abs(sum(d.model_bytes for d in said.devices) - whole) < MIB


@settings(max_examples=25, deadline=None)
@given(n_ctx=st.integers(256, 60_000), more=st.integers(0, 60_000), quant=st.sampled_from(["F16", "Q8_0", "Q4_0"]))
def test_more_context_never_costs_less(n_ctx: int, more: int, quant: str) -> None:
    for model in ("Qwen3-8B", "Gemma-2-9B", "LFM2-1.2B"):
        small, large = (
            estimate_memory(prepared(model), ContextParams(n_ctx=n, type_k=quant, type_v=quant), GPU).device("CUDA0")
            for n in (n_ctx, n_ctx + more)
        )
        assert small.context_bytes <= large.context_bytes
        assert small.total_bytes <= large.total_bytes + MIB


def test_two_gpus_share_the_layers_and_pipeline_their_inputs() -> None:
    two = Placement(devices=("CUDA0", "CUDA1"), tensor_split=(3.0, 1.0))
    said = estimate_memory(prepared("Qwen3-8B"), ContextParams(n_ctx=8192, n_parallel=1), two)
    first, second = said.device("CUDA0"), said.device("CUDA1")
    assert (first.context_bytes // MIB, second.context_bytes // MIB) == (28 * 32, 8 * 32)
    one = estimate_memory(prepared("Qwen3-8B"), ContextParams(n_ctx=8192, n_parallel=1), GPU).device("CUDA0")
    assert first.model_bytes + second.model_bytes == one.model_bytes
    assert first.compute_bytes > one.compute_bytes


def test_every_model_of_the_catalog_has_an_answer() -> None:
    """Those whose compute buffers are not modelled say so."""
    lower_bounds = set()
    for entry in catalog.entries():
        if entry.folder is not None:
            continue
        facts = facts_of(entry.name)
        said = estimate_memory(prepare(facts), ContextParams(n_ctx=4096), GPU)
        if not said.compute_known:
            lower_bounds.add(facts.arch)
            assert any("not modelled" in warning for warning in said.warnings)
        assert said.device("CUDA0").compute_bytes > MIB, entry.name
    assert lower_bounds == {"bert", "gemma4", "nemotron_h_moe", "qwen3vl", "qwen3vlmoe"}


def test_an_unknown_architecture_is_a_lower_bound_and_says_so() -> None:
    plain = facts_of("Qwen3-8B")
    said = estimate_memory(prepare(replace(plain, arch="deepseek4")), ContextParams(n_ctx=4096), GPU)
    assert not said.compute_known
    assert any("not modelled" in warning for warning in said.warnings)


def test_a_context_over_the_trained_one_is_a_warning() -> None:
    said = estimate_memory(prepared("Qwen3-8B"), ContextParams(n_ctx=400_000, n_parallel=1), GPU)
    assert "longer than the" in said.warnings[-1]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n_ctx": 0}, "context 0"),
        ({"n_ctx": -5}, "context -5"),
        ({"n_ctx": 2**40}, "context"),
        ({"n_ctx": 4096, "n_parallel": 0}, "parallel slots 0"),
        ({"n_ctx": 4096, "type_k": "Q6_K"}, "'Q6_K'"),
        ({"n_ctx": 4096, "type_v": "Q8_0", "flash_attn": False}, "'q8_0'"),
        ({"n_ctx": 4096, "n_ubatch": 0}, "micro-batch 0"),
    ],
)
def test_what_cannot_be_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(BadValue) as caught:
        ContextParams(**wrong)  # type: ignore[arg-type]
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n_gpu_layers": -1}, "GPU layers -1"),
        ({"tensor_split": (1.0, 2.0, 3.0)}, "3 shares for 1 devices"),
        ({"overrides": (("exps", "CUDA7"),)}, "'CUDA7'"),
        ({"overrides": (("ex(ps", "CPU"),)}, "'ex(ps'"),
    ],
)
def test_a_placement_that_cannot_be_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(BadValue) as caught:
        Placement(devices=("CUDA0",), **wrong)  # type: ignore[arg-type]
    assert named in str(caught.value)


def test_one_configuration_takes_under_a_millisecond() -> None:
    model = prepared("Qwen3-8B")
    configurations = [ContextParams(n_ctx=n) for n in range(2048, 40_000, 256)]
    estimate_memory(model, configurations[0], GPU)
    spent = []
    for ctx in configurations[1:]:
        start = time.thread_time()
        estimate_memory(model, ctx, GPU)
        spent.append(time.thread_time() - start)
    assert sorted(spent)[len(spent) // 2] < 0.001
