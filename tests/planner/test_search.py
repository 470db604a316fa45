"""The choice, on a model of simple numbers: 10 layers of 100 MiB at Q8_0, a head of 100, an embedding of 50."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.errors import BadValue, DoesNotFit
from quantplan.memory.estimate import DeviceMemory
from quantplan.planner.request import PRESETS, Capacity, PlanRequest, Setting
from quantplan.planner.search import Found, search, shortage
from quantplan.units import MIB

SHARE = {"Q8_0": 100, "Q6_K": 77, "Q5_K_M": 67, "Q4_K_M": 57, "Q3_K_M": 46, "Q2_K": 37}


def memory_of(setting: Setting) -> tuple[DeviceMemory, ...]:
    share = SHARE[setting.quant] * MIB
    on_gpu = min(setting.n_gpu_layers, 11)
    cells = setting.n_ctx * setting.n_parallel
    kv = cells * 2048
    gpu = DeviceMemory(name="CUDA0", model_bytes=on_gpu * share, context_bytes=kv * on_gpu // 11,
                     compute_bytes=30 * MIB if on_gpu else 0, output_bytes=0, overhead_bytes=0)  # fmt: skip
    host = DeviceMemory(name="Host", model_bytes=(11 - on_gpu) * share + share // 2,
                      context_bytes=kv - kv * on_gpu // 11, compute_bytes=10 * MIB, output_bytes=MIB,
                      overhead_bytes=0)  # fmt: skip
    return (gpu, host) if setting.n_gpu_layers else (host,)


def capacity(name: str, mib: int) -> Capacity:
    return Capacity(name=name, capacity_bytes=mib * MIB, free_bytes=mib * MIB, margin_bytes=0, margin_why="none")


def found(*, gpu: int | None, host: int, request: PlanRequest | None = None, n_ctx_train: int = 32768) -> Found:
    capacities = [capacity("CUDA0", gpu)] if gpu is not None else []
    return search(
        request or PlanRequest(), n_layer=10, n_ctx_train=n_ctx_train, memory_of=memory_of,
        capacities=[*capacities, capacity("Host", host)],
    )  # fmt: skip


def test_a_large_card_takes_the_best_preset_whole_and_a_longer_context() -> None:
    setting = found(gpu=8000, host=8000).choice.setting
    assert (setting.quant, setting.n_gpu_layers, setting.n_ctx) == ("Q8_0", 11, 32768)


def test_whole_on_the_card_beats_a_better_preset() -> None:
    result = found(gpu=800, host=8000)
    assert (result.choice.setting.quant, result.choice.setting.n_gpu_layers) == ("Q5_K_M", 11)
    assert [r.what for r in result.rejected] == [
        "Q8_0 at 8,192 tokens with all 11 layers on the GPU", "Q6_K at 8,192 tokens with all 11 layers on the GPU",
    ]  # fmt: skip


def test_a_small_card_takes_the_layers_that_fit() -> None:
    choice = found(gpu=300, host=8000).choice
    assert choice.setting.quant == "Q4_K_M"
    assert choice.setting.n_gpu_layers == 4  # 4 × (57 + 16 / 11) + 30 MiB fits in 300, 5 do not
    assert "4 of 11 layers fit on the GPU" in choice.why[0]


def test_a_host_alone_takes_the_fewest_bytes_of_little_damage() -> None:
    choice = found(gpu=None, host=64000).choice
    assert (choice.setting.quant, choice.setting.n_gpu_layers) == ("Q4_K_M", 0)


def test_a_tight_host_takes_less() -> None:
    assert found(gpu=None, host=560).choice.setting.quant == "Q3_K_M"


def test_nothing_fits() -> None:
    with pytest.raises(DoesNotFit, match=r"the smallest preset \(Q2_K\) at 8,192 tokens needs 4\d\d MiB on Host"):
        found(gpu=None, host=300)


def test_an_asked_context_is_kept() -> None:
    assert found(gpu=8000, host=8000, request=PlanRequest(n_ctx=4096)).choice.setting.n_ctx == 4096


def test_the_trained_context_is_not_passed() -> None:
    assert found(gpu=8000, host=8000, n_ctx_train=4096).choice.setting.n_ctx == 4096
    assert found(gpu=8000, host=8000, n_ctx_train=12000).choice.setting.n_ctx == 12000


@pytest.mark.parametrize(
    "request_", [PlanRequest(n_ctx=0), PlanRequest(n_ctx=-5), PlanRequest(n_parallel=0), PlanRequest(quants=())]
)
def test_impossible_requests(request_: PlanRequest) -> None:
    with pytest.raises(BadValue):
        found(gpu=None, host=8000, request=request_)


@given(gpu=st.integers(0, 3000), host=st.integers(300, 3000), n_ctx=st.sampled_from([None, 1024, 65536]))
def test_a_returned_plan_fits(gpu: int, host: int, n_ctx: int | None) -> None:
    capacities = {"CUDA0": capacity("CUDA0", gpu), "Host": capacity("Host", host)}
    try:
        result = found(gpu=gpu, host=host, request=PlanRequest(n_ctx=n_ctx))
    except DoesNotFit:
        return
    for choice in (result.choice, *result.alternatives):
        assert shortage(choice.needs, capacities) is None
        assert choice.needs == memory_of(choice.setting)
        assert choice.setting.quant in PRESETS
