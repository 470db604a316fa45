"""Two models behind one door: what does not fit together is swapped, and memory comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from serving.gateway.front_door import ask, chat, front_door
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Margin, Plan, PlannedDevice, read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.types import Toolchain
from quantplan.serving.gateway.router import Model, engine_key, engine_launch
from quantplan.serving.supervise import Supervisor
from quantplan.units import MIB

pytestmark = [pytest.mark.tools, pytest.mark.build]


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and all below it."""
    top = psutil.Process(pid)
    total = 0
    for process in (top, *top.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def on_a_host_of(plan: Plan, capacity_bytes: int, **changes: object) -> Plan:
    """The plan on a host with so much memory, none of it a margin."""
    host = next(device for device in plan.memory if device.name == "Host")
    device = PlannedDevice(
        name="Host", model_bytes=host.model_bytes, context_bytes=host.context_bytes, compute_bytes=host.compute_bytes,
        output_bytes=host.output_bytes, overhead_bytes=0, capacity_bytes=capacity_bytes, free_bytes=capacity_bytes,
    )  # fmt: skip
    return replace(plan, memory=(device,), margin=(Margin(device="Host", bytes=0, why="test"),), **changes)


@contextmanager
def running_router(models: dict[str, Model], key: Path, tools: Toolchain, work: Path) -> Iterator[Supervisor]:
    launch = engine_launch(models, port=free_port(), api_key_file=key, tools=tools, work=work)
    engine = Supervisor(launch, on_event=lambda _event: None)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def loaded(url: str) -> set[str]:
    told = json.loads(ask(f"{url}/status")[2])
    return {name for name, model in told["models"].items() if model["loaded"]}


@pytest.mark.slow
def test_models_are_swapped_by_what_fits_and_memory_returns(
    tiny: Artifact, toolchain: Toolchain, tmp_path: Path
) -> None:
    plan = read_plan(tiny.folder / "plan.json")
    one = next(device for device in plan.memory if device.name == "Host").total_bytes
    room = int(1.5 * one)  # for one of them, not for two
    plans = {name: on_a_host_of(plan, room, model=name) for name in ("a", "b")}
    models = {name: Model(file=tiny.model.resolve(), plan=told) for name, told in plans.items()}
    with (
        engine_key() as (file, key),
        running_router(models, file, toolchain, tmp_path) as engine,
        front_door(tmp_path, plans, engine_port=int(engine.url.rsplit(":", 1)[1]), engine_key=key) as door,
    ):
        assert engine.launch.argv[engine.launch.argv.index("--models-max") + 1] == "1"
        answers = {}
        baseline = None
        for name in ("a", "b", "a", "b"):
            status, _, body = ask(f"{door.url}/v1/chat/completions", chat("hello", model=name))
            assert status == 200, body
            answers[name] = json.loads(body)["choices"][0]["message"]["content"]
            assert loaded(door.url) == {name}
            now = tree_bytes(engine.pid)
            baseline = baseline or now
            assert abs(now - baseline) < 64 * MIB, (now, baseline)
            told = json.loads(ask(f"{engine.url}/props?model={name}", key=key)[2])
            assert told["default_generation_settings"]["n_ctx"] == plan.n_ctx_per_slot
            assert told["total_slots"] == plan.n_parallel
        assert answers["a"] == answers["b"]
        # a model is not taken from under a running request: both at once come out whole
        results: list[tuple[int, bytes]] = []

        def go(name: str) -> None:
            status, _, body = ask(f"{door.url}/v1/chat/completions",
                                  chat("hello", model=name, stream=True, max_tokens=200, ignore_eos=True))  # fmt: skip
            results.append((status, body))

        threads = [threading.Thread(target=go, args=(name,)) for name in ("a", "b", "a", "b")]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(timeout=120)
        assert [status for status, _ in results] == [200] * 4
        assert all(body.rstrip().endswith(b"data: [DONE]") for _, body in results)
        unknown = ask(f"{door.url}/v1/chat/completions", chat("hello", model="c"))
        assert unknown[0] == 404
        assert json.loads(unknown[2])["error"]["message"] == "model 'c' is not served here; served: a, b"
        names = [model["id"] for model in json.loads(ask(f"{door.url}/v1/models")[2])["data"]]
        assert names == ["a", "b"]
