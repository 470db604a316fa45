"""Where a mixture's experts go: within 5 % of the best decode speed of a sweep over every split that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantplan.cli import planning
from quantplan.cli.plan_tools import capacities_of
from quantplan.hardware.profiles import load_profile
from quantplan.model.read import read_model
from quantplan.planner.candidates import capacities_for
from quantplan.planner.instruments import shortage
from quantplan.planner.request import Objective, PlanRequest, Setting

CASES = [
    ("Qwen/Qwen3-30B-A3B", "rtx4060+32GB"),
    ("Qwen/Qwen3-30B-A3B", "rtx3060+rtx3090+64GB"),
    ("openai/gpt-oss-20b", "rtx3050+32GB"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "rtx4090+64GB"),
    ("deepseek-ai/DeepSeek-V2-Lite-Chat", "rtx4060+32GB"),
    ("zai-org/GLM-4.5-Air", "2x3090+128GB"),
]


@pytest.mark.parametrize(("name", "machine"), CASES)
def test_within_five_percent_of_a_sweep(name: str, machine: str) -> None:
    facts, host = read_model(name), load_profile(machine)
    request = PlanRequest(objective=Objective.SPEED, n_ctx=8192, quants=("Q4_K_M",), n_ubatches=(512,),
                          kv_types=(("f16", "f16"),))  # fmt: skip
    planned = planning.recommend(facts, host, request, with_alternatives=False)
    tools, capacities = planned.tools, capacities_for(planned.request, planned.tools)
    assert capacities_of(host) == planned.capacities
    best = 0.0
    for setting in _sweep(planned.choice.setting, facts.n_layer, tools.gpus):
        decode = tools.speed_of(setting, 8192, 1)[0]
        if decode > best and shortage(tools.memory_of(setting), capacities) is None:
            best = decode
    assert best > 0
    assert planned.choice.merits.decode >= 0.95 * best


def _sweep(like: Setting, n_layer: int, gpus: tuple[str, ...]) -> list[Setting]:
    """Every third number of layers with experts on the host, with several splits over the GPUs."""
    n = n_layer + 1
    splits: list[tuple[int, ...]] = [()]
    if len(gpus) > 1:
        splits = [(first, n - first) for first in range(0, n + 1, 6)]
    return [
        replace(like, devices=gpus, n_gpu_layers=n, n_cpu_moe=n_cpu_moe, tensor_split=split)
        for n_cpu_moe in range(0, n_layer + 1, 3 if len(gpus) > 1 else 1)
        for split in splits
    ]
