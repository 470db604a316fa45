"""One llama-server with two slots, and a gateway before it, for all tests that don't end either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from serving.gateway.front_door import FrontDoor, front_door
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Plan, read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running llama-server and the plan it was started with."""

    url: str
    port: int
    pid: int
    plan: Plan
    lines: list[str]  # its log as it comes


@pytest.fixture(scope="session")
def engine(tiny: Artifact, toolchain: Toolchain) -> Iterator[Engine]:
    plan = read_plan(tiny.folder / "plan.json")
    settings = server_settings(plan, model=tiny.model, port=free_port())
    lines: list[str] = []
    with running_server(toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lines.append) as running:
        yield Engine(url=running.url, port=settings.port, pid=running.child.pid, plan=plan, lines=lines)


@pytest.fixture(scope="session")
def door(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    """A gateway without keys."""
    with front_door(tmp_path_factory.mktemp("door"), {"quantplan-tiny": engine.plan}, engine_port=engine.port) as found:
        yield found
