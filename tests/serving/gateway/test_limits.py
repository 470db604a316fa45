"""What is derived from the slots, what a strained host changes, and what fits beside what: all without I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.artifact.plan_file import Figure, Margin, Plan, PlannedDevice
from quantplan.hardware.monitor import DeviceSample, Sample
from quantplan.serving.gateway.limits import TokenBucket, Wishes, derive, retry_after_s
from quantplan.serving.gateway.swap import Resident, fits, needs_of, to_unload, usable_of
from quantplan.serving.gateway.throttle import Concurrency, decide, rules_for
from quantplan.units import GIB, MIB


def plan(**changes: Any) -> Plan:
    """A plan with four slots of 2,048 tokens."""
    told = Plan(
        model="m", quant="Q4_K_M", source={}, runtime="llama-server", n_ctx_per_slot=2048, n_parallel=4,
        kv_unified=True, type_k="f16", type_v="f16", flash_attn="on", n_batch=512, n_ubatch=512, n_gpu_layers=0,
        tensor_split=(), n_cpu_moe=0, override_tensor=(), threads=2, threads_batch=2, numa=None, cpu_range=None,
        cache_ram_bytes=0, load_mode="mmap", mmproj=None, draft=None, memory=(), decode_tokens_per_s=None,
        prefill_tokens_per_s=None, quality=None, margin=(Margin(device="Host", bytes=GIB, why="test"),), argv=(),
        host_fingerprint=None, made_at="",
    )  # fmt: skip
    return replace(told, **changes)


def sample(*, reasons: tuple[str, ...] = (), available: int = 2 * GIB, swap: float = 0, wait: float = 0) -> Sample:
    device = DeviceSample(name="CUDA0", used_bytes=1, total_bytes=2, temperature_c=90, power_w=1.0,
                          throttle_reasons=reasons)  # fmt: skip
    return Sample(at=0, devices=(device,), available_bytes=available, used_bytes=0, over_plan_bytes=None,
                  swap_in_bytes_per_s=swap, swap_out_bytes_per_s=0, disk_wait=0, memory_wait=wait)  # fmt: skip


def test_limits_come_from_the_slots() -> None:
    limits = derive(plan(), n_keys=0)
    assert (limits.slots, limits.queue, limits.in_flight, limits.per_key_in_flight) == (4, 4, 8, 8)
    assert (limits.n_ctx, limits.max_tokens, limits.requests_per_s) == (2048, 2048, None)
    assert derive(plan(), n_keys=3).per_key_in_flight == 4
    fast = plan(decode_tokens_per_s=Figure(value=80, low=60, high=100, origin="test"))
    assert derive(fast, n_keys=0).requests_per_s == 4 * 100 / 16
    wished = derive(fast, n_keys=0, wishes=Wishes(queue=0, max_tokens=9000, requests_per_s=2))
    assert (wished.in_flight, wished.max_tokens, wished.requests_per_s) == (4, 2048, 2)


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = TokenBucket(per_s=2, burst=3, now=0)
    assert [bucket.take(0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0) == 0.5
    assert bucket.take(0.5) == 0
    assert bucket.take(0.5) == 0.5
    assert [bucket.take(100) for _ in range(4)] == [0, 0, 0, 0.5]


@given(
    per_s=st.floats(0.1, 100), burst=st.integers(1, 50), gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200)
)  # fmt: skip
def test_no_more_than_burst_and_rate_ever_pass(per_s: float, burst: int, gaps: list[float]) -> None:
    bucket, now, passed = TokenBucket(per_s=per_s, burst=burst, now=0), 0.0, 0
    for gap in gaps:
        now += gap
        passed += bucket.take(now) == 0
    assert passed <= burst + per_s * now + 1e-6


def test_retry_after_is_the_time_of_those_before() -> None:
    assert retry_after_s(waiting=3, running_limit=2, mean_answer_s=5) == 10
    assert retry_after_s(waiting=0, running_limit=8, mean_answer_s=0.1) == 1
    assert retry_after_s(waiting=0, running_limit=8, mean_answer_s=None) == 1


@pytest.mark.parametrize(
    "strained",
    [
        sample(reasons=("hardware thermal slowdown",)),
        sample(available=GIB // 2 - 1),
        sample(swap=1e6, wait=0.2),
    ],
)
def test_strain_halves_and_calm_restores_one_by_one(strained: Sample) -> None:
    rules, now = rules_for(plan()), Concurrency(limit=4)
    limits = []
    for _ in range(6):
        now = decide(now, strained, rules)
        limits.append(now.limit)
    assert limits == [4, 2, 2, 1, 1, 1]
    assert now.reason
    for _ in range(9):
        now = decide(now, sample(), rules)
    assert now.limit == 1
    assert decide(now, sample(), rules).limit == 2
    for _ in range(40):
        now = decide(now, sample(), rules)
    assert (now.limit, now.reason) == (4, None)


def test_one_bad_sample_or_a_power_cap_or_a_margin_in_use_changes_nothing() -> None:
    rules = rules_for(plan())
    hot, between = sample(reasons=("hardware thermal slowdown",)), sample(available=GIB - 1)
    now = Concurrency(limit=4)
    for _ in range(20):
        now = decide(decide(now, hot, rules), sample(), rules)
        now = decide(now, sample(reasons=("software power cap",)), rules)
    assert now.limit == 4
    low = Concurrency(limit=2, reason="x")
    for _ in range(50):
        low = decide(low, between, rules)  # neither strained nor calm
    assert low.limit == 2


@given(st.lists(st.sampled_from(["hot", "calm", "between"]), max_size=300))
def test_it_stays_between_one_and_the_slots(kinds: list[str]) -> None:
    told = {"hot": sample(available=0), "calm": sample(), "between": sample(available=GIB - 1)}
    now, rules = Concurrency(limit=4), rules_for(plan())
    for kind in kinds:
        before, now = now.limit, decide(now, told[kind], rules)
        assert 1 <= now.limit <= 4
        assert now.limit <= before if kind == "hot" else now.limit >= before


def device(name: str, total: int, capacity: int | None) -> PlannedDevice:
    return PlannedDevice(name=name, model_bytes=total, context_bytes=0, compute_bytes=0, output_bytes=0,
                         overhead_bytes=0, capacity_bytes=capacity, free_bytes=None)  # fmt: skip


def test_what_may_be_shared_is_the_capacity_less_the_margin() -> None:
    one = plan(memory=(device("CUDA0", 6 * GIB, 12 * GIB), device("Host", GIB, 8 * GIB)), cache_ram_bytes=512 * MIB)
    assert needs_of(one) == {"CUDA0": 6 * GIB, "Host": GIB + 512 * MIB}
    assert usable_of((one,)) == {"CUDA0": 12 * GIB, "Host": 7 * GIB}
    assert usable_of((one, plan(memory=(device("CUDA0", 1, None),)))) is None
    assert fits([{"CUDA0": 6}], None)
    assert not fits([{"CUDA0": 6}, {"CUDA0": 1}], None)  # nothing known: one at a time


def test_no_more_goes_than_must() -> None:
    usable = {"CUDA0": 10}
    loaded = (
        Resident(name="old-small", needs={"CUDA0": 1}, last_used=1),
        Resident(name="old-large", needs={"CUDA0": 6}, last_used=2),
        Resident(name="new", needs={"CUDA0": 3}, last_used=3),
    )
    assert to_unload({"CUDA0": 6}, loaded, usable) == ("old-large",)
    assert to_unload({"CUDA0": 10}, loaded, usable) == ("old-small", "old-large", "new")
    assert to_unload({"CUDA0": 0}, loaded, usable) == ()
    assert to_unload({"CUDA0": 11}, loaded, usable) is None
    assert to_unload({"Host": 1}, loaded, usable) is None


@given(
    sizes=st.lists(st.integers(0, 10), min_size=1, max_size=6), wanted=st.integers(0, 12), room=st.integers(1, 30)
)  # fmt: skip
def test_what_stays_fits_with_what_comes(sizes: list[int], wanted: int, room: int) -> None:
    loaded = [Resident(name=str(n), needs={"D": size}, last_used=n) for n, size in enumerate(sizes)]
    going = to_unload({"D": wanted}, loaded, {"D": room})
    if going is None:
        assert wanted > room
        return
    staying = [model.needs for model in loaded if model.name not in going]
    assert fits([{"D": wanted}, *staying], {"D": room})
    for name in going:  # none of them could have stayed
        assert not fits([{"D": wanted}, *staying, {"D": sizes[int(name)]}], {"D": room})
