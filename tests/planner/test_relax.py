"""Nothing fits: the smallest change, and constraints that contradict each other."""

from __future__ import annotations

import pytest

from quantplan.cli import planning
from quantplan.cli.hints import hint_for
from quantplan.errors import Contradiction, ExitCode, NothingFits
from quantplan.hardware.profiles import load_profile
from quantplan.model.read import read_model
from quantplan.planner.request import PlanRequest
from quantplan.units import GIB, MIB

QWEN = "Qwen/Qwen3-32B"


def refused(model: str, machine: str, request: PlanRequest) -> NothingFits | Contradiction:
    with pytest.raises((NothingFits, Contradiction)) as caught:
        planning.recommend(read_model(model), load_profile(machine), request)
    assert caught.value.exit_code is ExitCode.DOES_NOT_FIT
    return caught.value


def fits(model: str, machine: str, request: PlanRequest) -> bool:
    planning.recommend(read_model(model), load_profile(machine), request, with_alternatives=False)
    return True


def test_a_model_that_is_too_large_names_cache_and_context() -> None:
    error = refused("meta-llama/Llama-3.3-70B-Instruct", "rtx3060+16GB", PlanRequest())
    assert isinstance(error, NothingFits)
    assert error.need_bytes > error.free_bytes
    changes = dict(error.changes)
    assert changes["cache"] == "q4_0"
    n_ctx = int(changes["context"])
    assert n_ctx % 256 == 0
    assert fits("meta-llama/Llama-3.3-70B-Instruct", "rtx3060+16GB", PlanRequest(n_ctx=n_ctx))
    with pytest.raises(NothingFits):
        fits("meta-llama/Llama-3.3-70B-Instruct", "rtx3060+16GB", PlanRequest(n_ctx=n_ctx + 512))
    hint = hint_for(error)
    assert hint is not None
    assert hint.startswith("the smallest change: --kv q4_0; also: --ctx ")


def test_nothing_helps_a_model_that_is_far_too_large() -> None:
    error = refused("deepseek-ai/DeepSeek-V3", "rtx3060+16GB", PlanRequest())
    assert isinstance(error, NothingFits)
    assert error.changes == ()
    assert "no single change" in (hint_for(error) or "")


def test_two_constraints_that_contradict_are_named() -> None:
    error = refused(QWEN, "rtx3060+16GB", PlanRequest(n_parallel=16, n_ctx=32768))
    assert isinstance(error, Contradiction)
    assert (error.first, error.second) == ("16 slots", "a context of 32,768 tokens")
    slots = int(dict(error.changes)["slots"])
    assert fits(QWEN, "rtx3060+16GB", PlanRequest(n_parallel=slots, n_ctx=32768))


def test_a_preset_and_a_speed_that_contradict() -> None:
    error = refused("meta-llama/Llama-3.1-8B-Instruct", "rtx4070+32GB",
                    PlanRequest(quants=("Q8_0",), any_preset=True, min_tokens_per_s=60))  # fmt: skip
    assert isinstance(error, Contradiction)
    assert {error.first, error.second} == {"at least 60 tokens/s", "the presets Q8_0"}


def test_a_speed_that_nothing_reaches() -> None:
    error = refused("meta-llama/Llama-3.1-8B-Instruct", "rtx3060+16GB", PlanRequest(min_tokens_per_s=5000))
    assert isinstance(error, NothingFits)
    assert str(error).startswith("no plan reaches 5000 tokens/s here: the fastest decodes at ")
    speed = float(dict(error.changes)["speed"])
    assert fits("meta-llama/Llama-3.1-8B-Instruct", "rtx3060+16GB", PlanRequest(min_tokens_per_s=speed))


def test_a_limit_on_disk() -> None:
    error = refused(QWEN, "rtx4090+64GB", PlanRequest(max_disk_bytes=10 * GIB, quants=("Q4_K_M",), any_preset=True))
    need = int(dict(error.changes)["disk"])
    assert fits(QWEN, "rtx4090+64GB", PlanRequest(max_disk_bytes=need * MIB, quants=("Q4_K_M",), any_preset=True))


def test_a_limit_on_ram() -> None:
    error = refused(QWEN, "64GB", PlanRequest(max_ram_bytes=4 * GIB))
    need = int(dict(error.changes)["ram"])
    assert fits(QWEN, "64GB", PlanRequest(max_ram_bytes=need * MIB))
