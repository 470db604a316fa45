"""Which engine, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantplan.cli import planning
from quantplan.cli.runtimes import runtime_choice
from quantplan.errors import RuntimeCannot
from quantplan.hardware.profiles import load_profile
from quantplan.model.facts import FactsOrigin
from quantplan.model.read import read_model
from quantplan.planner.request import PlanRequest
from quantplan.planner.runtime import RuntimeChoice
from quantplan.report.runtime import runtime_text

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def choice(
    machine: str, *, model: str = LLAMA, n: int = 1, asked: str | None = None, use: str = "general"
) -> RuntimeChoice:
    request = PlanRequest(n_parallel=n, n_ctx=4096)
    planned = planning.recommend(read_model(model), load_profile(machine), request, with_alternatives=False)
    return runtime_choice(planned, asked=asked, use=use)


def test_one_stream_and_the_cpu_are_for_llama_cpp() -> None:
    one = choice("h100+64GB")
    assert one.runtime == "llama.cpp"
    assert "1 request(s) at a time" in one.why
    assert one.of("vllm").can
    cpu = choice("32GB", model="Qwen/Qwen3-0.6B", n=16)
    assert (cpu.runtime, cpu.of("vllm").can) == ("llama.cpp", False)
    assert cpu.of("vllm").why.startswith("there is no GPU")


def test_many_requests_that_fit_in_16_bit_are_for_vllm() -> None:
    many = choice("h100+64GB", n=32)
    vllm, llama = many.of("vllm"), many.of("llama.cpp")
    assert many.runtime == "vllm"
    assert vllm.memory is not None
    assert (vllm.memory.tensor_parallel, vllm.memory.max_num_seqs) == (1, 32)
    assert vllm.total_per_s is not None
    assert llama.total_per_s is not None
    assert vllm.total_per_s.low < vllm.total_per_s.value < vllm.total_per_s.high
    assert "no run of vLLM is behind it" in vllm.total_per_s.origin
    text = runtime_text(many)
    assert text.startswith("Runtime for 32 request(s) at a time: vllm\n")
    assert "--tensor-parallel-size 1 --pipeline-parallel-size 1 --max-num-seqs 32" in text


def test_what_16_bit_do_not_fit_in_is_for_llama_cpp_and_says_how_many_machines_would() -> None:
    small = choice("rtx4070+32GB", n=8)
    vllm = small.of("vllm")
    assert (small.runtime, vllm.can, vllm.nodes) == ("llama.cpp", False, 2)
    assert vllm.memory is not None
    assert vllm.memory.pipeline_parallel == 2
    assert "2 such machines hold them (pipeline parallel)" in vllm.why


def test_several_cards_are_used_as_far_as_the_heads_divide() -> None:
    two = choice("2xrtx4090+64GB", n=8).of("vllm")
    assert two.can
    assert two.memory is not None
    assert two.memory.tensor_parallel in (1, 2)
    large = choice("4xh100+256GB", model="meta-llama/Llama-3.3-70B-Instruct", n=16).of("vllm")
    assert large.memory is not None
    assert large.memory.tensor_parallel in (2, 4)


@pytest.mark.parametrize(("machine", "why"), [("gtx1080ti+32GB", "compute capability 7.0"), ("m1", "no wheels for")])
def test_cards_that_vllm_does_not_run_on(machine: str, why: str) -> None:
    assert why in choice(machine, model="Qwen/Qwen3-0.6B", n=8).of("vllm").why


def test_a_runtime_that_cannot_is_refused_with_those_that_can() -> None:
    with pytest.raises(RuntimeCannot) as caught:
        choice("32GB", model="Qwen/Qwen3-0.6B", asked="vllm")
    assert str(caught.value) == (
        "vllm cannot serve Qwen/Qwen3-0.6B: there is no GPU, and on a CPU llama.cpp reads a quarter of the bytes; "
        "llama.cpp or ollama can"
    )
    assert choice("32GB", model="Qwen/Qwen3-0.6B", asked="ollama").of("ollama").can


def test_a_gguf_is_not_for_vllm() -> None:
    facts = replace(read_model("Qwen/Qwen3-0.6B"), origin=FactsOrigin.GGUF_HEADER)
    request = PlanRequest(n_ctx=4096, n_parallel=16)
    planned = planning.recommend(facts, load_profile("h100+64GB"), request, with_alternatives=False)
    assert runtime_choice(planned, asked=None).of("vllm").why == "it loads original weights, and this is a GGUF"


def test_images_and_tools_are_inputs() -> None:
    seeing = choice("rtx4090+64GB", model="Qwen/Qwen3-VL-8B-Instruct", use="vision").of("llama.cpp")
    assert any("projector" in said for said in seeing.says)
    calling = choice("rtx4090+64GB", model="Qwen/Qwen3-8B", use="tools").of("llama.cpp")
    assert any("--jinja" in said for said in calling.says)
    unknown = choice("rtx4090+64GB", model="google/gemma-2-9b-it", use="tools").of("llama.cpp")
    assert any("is not known without the model's files" in said for said in unknown.says)
