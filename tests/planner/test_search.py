"""The search on real memory and speed models: what fits, what is kept free, what is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import DENSE, EXPERTS, Case, facts, host_of, instruments, random_case

from quantplan.errors import BadValue
from quantplan.memory.estimate import HOST
from quantplan.model.facts import ModelFacts
from quantplan.planner.alternatives import dominates, front
from quantplan.planner.candidates import Choice, capacities_for, check
from quantplan.planner.instruments import contexts, shortage
from quantplan.planner.request import Objective, PlanRequest
from quantplan.planner.search import Search
from quantplan.units import GIB, MIB

MODEL = facts(DENSE, n_layer=10, n_embd=1024, n_ff=4096, n_vocab=32000, n_head_kv=4)
MIXTURE = facts(EXPERTS, n_layer=8, n_embd=1024, n_ff=768, n_vocab=32000, n_head_kv=4, n_expert=32)
FAST, SLOW, RAM = 900 * 10**9, 300 * 10**9, 40 * 10**9


def found(
    *gpus: tuple[int, int], model: ModelFacts = MODEL, ram: int = 8192, request: PlanRequest | None = None
) -> Choice | None:
    host = host_of([(mib * MIB, rate) for mib, rate in gpus], ram_bytes=ram * MIB, ram_rate=RAM)
    case = Case(model, host, request or PlanRequest(), "test")
    return Search(instruments(case)).best(case.request)


def chosen(
    *gpus: tuple[int, int], model: ModelFacts = MODEL, ram: int = 8192, request: PlanRequest | None = None
) -> Choice:
    choice = found(*gpus, model=model, ram=ram, request=request)
    assert choice is not None
    return choice


def test_a_large_card_takes_all_layers_and_a_longer_context() -> None:
    setting = chosen((4096, FAST)).setting
    assert (setting.quant, setting.n_gpu_layers, setting.n_ctx) == ("Q8_0", 11, 32768)
    assert (setting.type_k, setting.n_cpu_moe, setting.devices) == ("f16", 0, ("CUDA0",))


def test_a_small_card_takes_the_layers_that_fit_and_not_one_more() -> None:
    choice = chosen((150, FAST), request=PlanRequest(quants=("Q8_0",), n_ctx=4096, kv_types=(("f16", "f16"),)))
    setting = choice.setting
    assert 0 < setting.n_gpu_layers < 11
    case = Case(MODEL, host_of([(150 * MIB, FAST)], ram_bytes=8 * GIB, ram_rate=RAM), PlanRequest(), "test")
    tools = instruments(case)
    more = tools.memory_of(replace(setting, n_gpu_layers=setting.n_gpu_layers + 1))
    assert shortage(more, capacities_for(case.request, tools)) is not None


def test_a_mixture_keeps_attention_on_the_card_and_experts_on_the_host() -> None:
    setting = chosen((160, FAST), model=MIXTURE, request=PlanRequest(n_ctx=4096, quants=("Q4_K_M",))).setting
    assert setting.n_gpu_layers == 9
    assert 0 < setting.n_cpu_moe <= 8


def test_the_faster_of_two_unlike_cards_takes_more() -> None:
    request = PlanRequest(objective=Objective.SPEED, quants=("Q8_0",), n_ctx=4096)
    for first, second in ((FAST, SLOW), (SLOW, FAST)):
        setting = chosen((140, first), (140, second), request=request).setting
        counts = setting.tensor_split
        assert sum(counts) == setting.n_gpu_layers
        assert (counts[0] >= counts[1]) if first > second else (counts[0] <= counts[1])


def test_like_cards_share_alike() -> None:
    setting = chosen((190, FAST), (190, FAST), request=PlanRequest(quants=("Q8_0",), n_ctx=4096)).setting
    assert setting.n_gpu_layers == 11
    assert abs(setting.tensor_split[0] - setting.tensor_split[1]) <= 2  # the head is larger than a layer


def test_one_card_that_is_enough_is_taken_alone() -> None:
    assert chosen((4096, FAST), (4096, FAST)).setting.devices in (("CUDA0",), ("CUDA1",))


def test_presets_advised_against_come_last() -> None:
    request = PlanRequest(objective=Objective.SPEED, n_ctx=2048)
    assert chosen((4096, FAST), request=request).setting.quant == "Q4_K_M"
    assert chosen((4096, FAST), request=replace(request, any_preset=True)).setting.quant in ("Q2_K", "Q3_K_M")


def test_code_wants_more_faithful_presets_than_chat() -> None:
    from quantplan.quant.uses import Use

    damage = {use: chosen((0, FAST), request=PlanRequest(use=use)).merits.damage for use in (Use.GENERAL, Use.CODE)}
    assert damage[Use.CODE] <= damage[Use.GENERAL]


def test_throughput_takes_many_slots_and_every_slot_its_context() -> None:
    request = PlanRequest(objective=Objective.THROUGHPUT, n_parallel=None, n_ctx=2048, quants=("Q4_K_M",))
    choice = chosen((4096, FAST), request=request)
    assert choice.setting.n_parallel >= 16
    assert choice.merits.total > 2 * choice.merits.decode
    assert choice.setting.kv_unified


def test_context_takes_the_longest() -> None:
    assert chosen((4096, FAST), request=PlanRequest(objective=Objective.CONTEXT)).setting.n_ctx == 65536


def test_latency_is_no_worse_than_any_other_objective() -> None:
    from quantplan.planner.score import first_token_seconds

    request = PlanRequest(n_ctx=4096)
    times = {
        objective: first_token_seconds(
            chosen((300, FAST), request=replace(request, objective=objective)).merits, request.workload
        )
        for objective in (Objective.LATENCY, Objective.BALANCED, Objective.QUALITY)
    }
    assert times[Objective.LATENCY] <= min(times.values()) * 1.01


def test_a_least_speed_is_kept() -> None:
    slow = chosen((100, FAST), request=PlanRequest(objective=Objective.QUALITY, n_ctx=2048))
    asked = slow.merits.decode * 1.2
    fast = chosen((100, FAST), request=PlanRequest(objective=Objective.QUALITY, n_ctx=2048, min_tokens_per_s=asked))
    assert fast.merits.decode >= asked
    assert fast.merits.damage > slow.merits.damage
    assert found((100, FAST), request=PlanRequest(min_tokens_per_s=1e6)) is None


def test_limits_of_ram_and_disk_are_kept() -> None:
    choice = chosen(request=PlanRequest(max_ram_bytes=220 * MIB, n_ctx=2048))
    assert choice.needs[-1].total_bytes <= 220 * MIB
    assert found(request=PlanRequest(max_ram_bytes=10 * MIB)) is None
    small = chosen(request=PlanRequest(max_disk_bytes=130 * MIB, n_ctx=2048)).setting.quant
    assert small not in ("Q8_0", "Q6_K")
    assert found(request=PlanRequest(max_disk_bytes=10 * MIB)) is None


def test_named_devices_are_kept_to() -> None:
    assert chosen((4096, FAST), (4096, FAST), request=PlanRequest(devices=("CUDA1",))).setting.devices == ("CUDA1",)
    assert chosen((4096, FAST), request=PlanRequest(devices=())).setting.devices == ()


def test_unified_memory_counts_once() -> None:
    """A GPU that shares the host's RAM: what it takes is not there for the host."""
    host = host_of([(400 * MIB, FAST)], ram_bytes=220 * MIB, ram_rate=RAM)
    shared = replace(host, gpus=(replace(host.gpus[0], unified=True),))
    request = PlanRequest(quants=("Q8_0",), n_ctx=2048)
    apart = Search(instruments(Case(MODEL, host, request, "apart"))).best(request)
    together = Search(instruments(Case(MODEL, shared, request, "together"))).best(request)
    assert apart is not None
    assert together is None or sum(need.total_bytes for need in together.needs) <= 220 * MIB


@pytest.mark.parametrize("request_", [
    PlanRequest(n_ctx=0), PlanRequest(n_ctx=-5), PlanRequest(n_parallel=0), PlanRequest(quants=()),
    PlanRequest(n_ctx=4096, n_ctx_min=8192),
])  # fmt: skip
def test_impossible_requests(request_: PlanRequest) -> None:
    with pytest.raises(BadValue):
        check(request_)


def test_contexts_double_up_to_the_trained() -> None:
    assert contexts(PlanRequest(), 131072) == (8192, 16384, 32768)
    assert contexts(PlanRequest(objective=Objective.CONTEXT), 40960) == (8192, 12288, 16384, 24576, 32768, 40960)
    assert contexts(PlanRequest(), 4096) == (4096,)
    assert contexts(PlanRequest(n_ctx_min=50000), 131072) == (50000,)
    assert contexts(PlanRequest(n_ctx=1000), 131072) == (1000,)


@given(seed=st.integers(1000, 100_000))
@settings(max_examples=40, deadline=None)
def test_a_returned_plan_fits_and_more_memory_is_never_worse(seed: int) -> None:
    case = random_case(seed)
    tools = instruments(case)
    choice = Search(tools).best(case.request)
    roomy = replace(
        case.host, ram=replace(case.host.ram, available_bytes=case.host.ram.available_bytes + 64 * MIB),
        gpus=tuple(replace(gpu, free_bytes=gpu.free_bytes + 64 * MIB) for gpu in case.host.gpus),
    )  # fmt: skip
    richer = Search(instruments(replace(case, host=roomy))).best(case.request)
    if choice is None:
        return
    assert shortage(choice.needs, capacities_for(case.request, tools)) is None
    assert choice.needs == tools.memory_of(choice.setting)
    assert choice.needs[-1].name == HOST
    assert richer is not None
    assert richer.key >= choice.key


def test_the_front_is_that_of_brute_force() -> None:
    """Of every preset, cache and context the fastest that fits; those that no other beats in everything."""
    from planner_cases import candidates

    host = host_of([(120 * MIB, FAST)], ram_bytes=GIB, ram_rate=RAM)
    request = PlanRequest(quants=("Q8_0", "Q5_K_M", "Q4_K_M"), n_ctx_min=2048, n_ubatches=(512,), n_depth=2048)
    model = facts(DENSE, n_layer=6, n_embd=1024, n_ff=2048, n_vocab=16000, n_head_kv=4, n_ctx_train=8192)
    case = Case(model, host, request, "front")
    tools = instruments(case)
    got = front(Search(tools), request, contexts=(2048, 4096, 8192))
    assert len(got) > 3
    capacities = capacities_for(request, tools)
    for setting in candidates(case, tools):
        if shortage(tools.memory_of(setting), capacities) is not None:
            continue
        decode = tools.speed_of(replace(setting, n_ctx=2048), 2048, 1)[0]
        merits = replace(got[0].merits, decode=decode, damage=tools.damage_of(setting.quant),
                         cache=1.0 if setting.type_k == "f16" else 0.95)  # fmt: skip
        candidate = replace(got[0], setting=setting, merits=merits)
        assert not any(dominates(candidate, one) for one in got), setting
