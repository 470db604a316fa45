"""The bars: what the gateway adds to the first token and takes of the rate, against direct access in the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving.gateway.front_door import front_door
from serving.gateway.paired import Compared, compare
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.slow]
N_TRIES = 3  # other work on the machine only ever adds to what is measured


def is_met(one: Compared, many: Compared) -> bool:
    return one.ttft_added_s < 0.003 and many.ttft_added_s < 0.003 and many.rate_ratio > 0.97


def test_the_gateway_costs_less_than_the_bars(tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> None:
    """Eight slots, and a processor left for gateway and clients: with every one taken by the engine's threads, which
    wait for each other by spinning, it is their contention that would be measured."""
    plan = replace(read_plan(tiny.folder / "plan.json"), n_parallel=8, threads=1, threads_batch=1)
    settings = server_settings(plan, model=tiny.model, port=free_port())
    found: list[tuple[Compared, Compared]] = []
    with (
        running_server(toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lambda _line: None) as up,
        front_door(tmp_path, {"quantplan-tiny": plan}, engine_port=settings.port) as door,
    ):
        pids = {"engine_pid": up.child.pid, "gateway_pid": door.child.pid}
        for _ in range(N_TRIES):
            one = compare(settings.port, door.port, n_pairs=20, n_streams=1, n_each=1, n_tokens=4, **pids)
            many = compare(settings.port, door.port, n_pairs=4, n_streams=8, n_each=2, n_tokens=300, **pids)
            found.append((one, many))
            assert many.gateway_cpu_s_per_token < 0.3 * many.engine_cpu_s_per_token_direct, found
            if is_met(one, many):
                return
    pytest.fail(f"not once in {N_TRIES} tries: {found}")
