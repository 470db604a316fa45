"""The speed model's arithmetic, by hand; and what must hold whatever its constants are."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.hardware.profiles import load_profile
from quantplan.memory.estimate import HOST
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.read import read_model
from quantplan.planner.calibration import BackendSpeed, HostMeasurement
from quantplan.planner.speed import (
    DeviceSpeed,
    PreparedSpeed,
    SpeedHost,
    predict,
    predict_values,
    prepare_speed,
    speed_host,
    time_to_first_token,
    time_to_load,
)
from quantplan.quant.presets import apply_preset
from quantplan.rehearsal.calibration import shipped_calibration

ONES = dict.fromkeys(("f", "q8", "q4", "q4_k", "q6_k", "q3_k", "q2_k", "iq"), 1.0)
MEMORIES = dict.fromkeys(("GDDR", "HBM", "shared", "DDR"), 1.0)
NOTHING = dict.fromkeys(ONES, 0.0)
# A device that only reads: no arithmetic, no kernels
READER = BackendSpeed(
    read=MEMORIES, join=1.0, cost=NOTHING, attention=0.0, attention_quantized=0.0, matrix_s=0.0, vector_s=0.0,
    attention_s=0.0, recurrent_s=0.0, mixture_s=0.0, token_s=0.0, batch=0.0, prefill=ONES, prefill_experts=1.0,
    prefill_attention=1e30, matrix=MEMORIES, tile=0.0, expert_tile=0.0, prefill_matrix_s=0.0, prefill_layer_s=0.0,
    crossing_s=0.0, spread_decode=dict.fromkeys(MEMORIES, 0.25), spread_prefill=dict.fromkeys(MEMORIES, 0.5),
)  # fmt: skip
ONE_SLOT = ContextParams(n_ctx=32768, n_parallel=1)
GPU = Placement(devices=("CUDA0",))


def device(name: str, bandwidth: float | None, constants: BackendSpeed = READER, **more: object) -> DeviceSpeed:
    kind = "cpu" if name == HOST else "gpu"
    return DeviceSpeed(
        name=name, kind=kind, backend="CUDA", bandwidth_bytes_per_s=int(bandwidth) if bandwidth else None,
        bandwidth_is_measured=False, fp16_flops_per_s=1e30, fp32_flops_per_s=1e30, constants=constants, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def host_of(*devices: DeviceSpeed) -> SpeedHost:
    return SpeedHost(devices=devices, source="a test", staged_bytes_per_s=1e9)


ONE_GPU = host_of(device("CUDA0", 1e12), device(HOST, 1e11))


@cache
def prepared(model: str, quant: str = "F16") -> PreparedSpeed:
    facts = read_model(model)
    return prepare_speed(facts, apply_preset(facts.tensors, facts.metadata, quant).tensors)


# ---- by hand


def test_a_token_reads_every_weight_but_the_embedding() -> None:
    # Llama 3.1 8B: 8,030,261,248 parameters, of them 128,256 x 4,096 in the embedding that one row is read of;
    # norms are f32: 65 of 4,096
    n_norms = 65 * 4096
    matrices = 8_030_261_248 - 128_256 * 4096 - n_norms
    expected = (2 * matrices + 4 * n_norms) / 1e12
    decode, _ = predict_values(prepared("Llama-3.1-8B"), ONE_SLOT, GPU, ONE_GPU, n_depth=0)
    assert 1 / decode == pytest.approx(expected, rel=1e-9)


def test_a_mixture_reads_the_experts_it_uses() -> None:
    model = prepared("Qwen3-30B-A3B")
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    whole = sum(size for piece in model.pieces for _, size in piece.nbytes)
    decode, _ = predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=0)
    assert 1 / decode == pytest.approx((whole - experts + experts * 8 / 128) / 1e12, rel=1e-9)


def test_several_slots_use_more_of_the_experts() -> None:
    model = prepared("Qwen3-30B-A3B")
    assert model.touched(1) == 8 / 128
    assert model.touched(4) == pytest.approx(1 - (120 / 128) ** 4)
    same = prepare_speed(model.facts, same_experts=True)
    assert same.touched(4) == 8 / 128


def test_depth_is_read_from_the_cache() -> None:
    # 36 layers x 8 heads x 128 x (K and V) x 2 bytes
    model, per_token = prepared("Qwen3-8B"), 36 * 8 * 128 * 2 * 2
    near, far = (1 / predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=n)[0] for n in (0, 8192))
    assert far - near == pytest.approx(8192 * per_token / 1e12, rel=1e-6)
    packed = replace(ONE_SLOT, type_k="Q8_0", type_v="Q8_0")
    far = 1 / predict_values(model, packed, GPU, ONE_GPU, n_depth=8192)[0]
    assert far - near == pytest.approx(8192 * per_token / 2 * 34 / 32 / 1e12, rel=1e-6)


def test_a_window_reads_no_more_than_itself() -> None:
    # Gemma 3 27B: 10 of 62 layers see everything, the others 1,024 tokens; 16 heads of 128
    model, layer = prepared("Gemma-3-27B"), 16 * 128 * 2 * 2
    near, far = (1 / predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=n)[0] for n in (1024, 9216))
    assert far - near == pytest.approx(10 * 8192 * layer / 1e12, rel=1e-6)


def test_one_latent_is_read_for_keys_and_values() -> None:
    model = prepared("DeepSeek-V2-Lite")
    near, far = (1 / predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=n)[0] for n in (0, 1000))
    assert far - near == pytest.approx(1000 * 27 * (512 + 64) * 2 / 1e12, rel=1e-6)


def test_a_recurrent_state_costs_the_same_at_every_depth() -> None:
    model = prepared("Mamba2-2.7B")
    near, far = (predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=n)[0] for n in (0, 30000))
    assert near == far


def test_partial_offload_adds_the_times() -> None:
    model = prepared("Llama-3.1-8B")
    half = replace(GPU, n_gpu_layers=17)  # the head and 16 of 32 layers
    layer = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4 * 2 * 4096
    whole = 1 / predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=0)[0]
    split = 1 / predict_values(model, ONE_SLOT, half, ONE_GPU, n_depth=0)[0]
    assert split - whole == pytest.approx(16 * layer * (1 / 1e11 - 1 / 1e12), rel=1e-9)


def test_experts_on_the_host_are_read_there() -> None:
    model = prepared("Qwen3-30B-A3B")
    used = 3 * 2048 * 768 * 2 * 8
    whole = 1 / predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=0)[0]
    for placement in (replace(GPU, n_cpu_moe=12), replace(GPU, overrides=((r"blk\.(\d|1[01])\..*_exps", "CPU"),))):
        split = 1 / predict_values(model, ONE_SLOT, placement, ONE_GPU, n_depth=0)[0]
        assert split - whole == pytest.approx(12 * used * (1 / 1e11 - 1 / 1e12), rel=1e-6)


def test_prefill_is_arithmetic_where_reading_costs_nothing() -> None:
    fast = replace(device("CUDA0", 1e18), fp16_flops_per_s=1e15)
    model = prepared("Llama-3.1-8B")
    elements = sum(n for piece in model.pieces for _, n in piece.n_elements)
    _, prefill = predict_values(model, ONE_SLOT, GPU, host_of(fast, device(HOST, 1e11)), n_depth=0)
    assert prefill == pytest.approx(1e15 / (2 * elements), rel=1e-3)


def test_two_cards_add_their_times() -> None:
    both = host_of(device("CUDA0", 1e12), device("CUDA1", 5e11), device(HOST, 1e11))
    model = prepared("Llama-3.1-8B")
    fast, slow = (
        1 / predict_values(model, ONE_SLOT, Placement(devices=(name,)), both, n_depth=0)[0]
        for name in ("CUDA0", "CUDA1")
    )
    split = 1 / predict_values(model, ONE_SLOT, Placement(devices=("CUDA0", "CUDA1")), both, n_depth=0)[0]
    assert fast < split < slow


# ---- figures


def test_a_figure_has_its_range_and_what_it_rests_on() -> None:
    speed = predict(prepared("Qwen3-8B"), ONE_SLOT, GPU, ONE_GPU, n_depth=0)
    assert speed.decode is not None
    assert speed.decode.low == pytest.approx(speed.decode.value / 1.25)
    assert speed.decode.high == pytest.approx(speed.decode.value * 1.25)
    assert speed.decode.origin.startswith("calculated: a test")
    assert predict_values(prepared("Qwen3-8B"), ONE_SLOT, GPU, ONE_GPU, n_depth=0)[0] == speed.decode.value


def test_an_unknown_bandwidth_is_no_number() -> None:
    unknown = host_of(device("CUDA0", None), device(HOST, 1e11))
    speed = predict(prepared("Qwen3-8B"), ONE_SLOT, GPU, unknown, n_depth=0)
    assert (speed.decode, speed.prefill) == (None, None)
    assert speed.why == "the memory bandwidth of CUDA0 is not known"
    assert time_to_first_token(prepared("Qwen3-8B"), ONE_SLOT, GPU, unknown, n_prompt=100) is None


def test_the_first_token_waits_for_the_prompt() -> None:
    model = prepared("Qwen3-8B")
    speed = predict(model, ONE_SLOT, GPU, ONE_GPU, n_depth=500)
    first = time_to_first_token(model, ONE_SLOT, GPU, ONE_GPU, n_prompt=1000)
    assert first is not None
    assert speed.decode is not None
    assert speed.prefill is not None
    assert first.value == pytest.approx(1000 / speed.prefill.value + 1 / speed.decode.value)
    assert first.low < first.value < first.high


def test_loading_takes_the_disks_rate_or_is_not_known() -> None:
    loading = time_to_load(4_000_000_000, read_bytes_per_s=2_000_000_000)
    assert loading is not None
    assert loading.value == 2.0
    assert time_to_load(4_000_000_000, read_bytes_per_s=None) is None


# ---- what was measured here


def row(measured_s: float, predicted_s: float, **more: object) -> HostMeasurement:
    values = {"device": "CUDA0", "kind": "decode", "model": "Qwen3-8B", "quant": "F16", "weights": "f",
              "is_mixture": False, "nbytes": 16_000_000_000, "n_depth": 0, "bandwidth_bytes_per_s": 10**12,
              "spread": 0.01, "n_runs": 3, "build": "b1", "measured_at": "2026-11-22T00:00:00Z"}  # fmt: skip
    return HostMeasurement(**{**values, **more}, measured_s=measured_s, predicted_s=predicted_s)  # type: ignore[arg-type]


def test_a_measurement_corrects_the_prediction() -> None:
    model = prepared("Qwen3-8B")
    plain = predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=0)
    known = host_of(replace(ONE_GPU.devices[0], measured=(row(0.02, 0.01),)), ONE_GPU.devices[1])
    speed = predict(model, ONE_SLOT, GPU, known, n_depth=0)
    assert speed.decode is not None
    assert speed.decode.value == pytest.approx(plain[0] / 2)
    assert speed.decode.high / speed.decode.value == pytest.approx(1.06)
    assert speed.decode.origin.startswith("calibrated on this host: llama-bench, 1 runs, nearest Qwen3-8B F16")
    assert speed.prefill is not None
    assert speed.prefill.value == plain[1]  # prefill was not measured


def test_the_nearest_measurement_counts_most() -> None:
    near, far = row(0.02, 0.01), row(0.01, 0.01, weights="q4_k", nbytes=400_000_000, model="other")
    known = host_of(replace(ONE_GPU.devices[0], measured=(near, far)), ONE_GPU.devices[1])
    model = prepared("Qwen3-8B")
    factor = predict_values(model, ONE_SLOT, GPU, ONE_GPU, n_depth=0)[0] / predict_values(
        model, ONE_SLOT, GPU, known, n_depth=0
    )[0]  # fmt: skip
    assert 1.95 < factor <= 2.0


# ---- whatever the constants are


def shipped(machine: str) -> SpeedHost:
    return speed_host(load_profile(machine), shipped_calibration())


@settings(max_examples=40, deadline=None)
@given(depths=st.tuples(st.integers(0, 100_000), st.integers(0, 100_000)), n_layers=st.integers(0, 37))
def test_more_depth_and_fewer_layers_on_the_card_are_never_faster(depths: tuple[int, int], n_layers: int) -> None:
    model, host = prepared("Qwen3-8B", "Q4_K_M"), shipped("rtx4070")
    placement = Placement(devices=("CUDA0",), n_gpu_layers=n_layers)
    near, far = (predict_values(model, ONE_SLOT, placement, host, n_depth=n) for n in sorted(depths))
    assert near >= far
    if n_layers:
        less = replace(placement, n_gpu_layers=n_layers - 1)
        assert predict_values(model, ONE_SLOT, less, host, n_depth=0)[0] <= predict_values(
            model, ONE_SLOT, placement, host, n_depth=0
        )[0] * (1 + 1e-9)  # fmt: skip


def test_a_prediction_takes_a_fifth_of_a_millisecond() -> None:
    model, host = prepared("Qwen3-30B-A3B", "Q4_K_M"), shipped("rtx4070")
    placements = [Placement(devices=("CUDA0",), n_cpu_moe=n) for n in range(48)]
    for placement in placements:
        predict(model, ONE_SLOT, placement, host, n_depth=4096)
    best = 1.0
    for _ in range(5):
        began = time.process_time()
        for placement in placements:
            predict(model, ONE_SLOT, placement, host, n_depth=4096)
        best = min(best, (time.process_time() - began) / len(placements))
    assert best < 0.2e-3


def test_a_cpu_of_unknown_ram_says_what_is_assumed() -> None:
    host = shipped("cpu+32GB")
    assert host.devices[-1].bandwidth_origin == "assumed (two channels of DDR4-3200; not measured)"
    speed = predict(prepared("Qwen3-0.6B", "Q4_K_M"), ONE_SLOT, Placement(), host, n_depth=0)
    assert speed.decode is not None
    assert speed.decode.high / speed.decode.value > 2
    assert "assumed (two channels of DDR4-3200; not measured)" in speed.decode.origin
