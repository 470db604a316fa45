"""One llama-server with two slots, generated clients, and a proxy that fails on demand."""

from __future__ import annotations

import importlib
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving.clients.fault_proxy import FaultProxy, fault_proxy
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Plan, read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.clients.generate import Language, client_files
from quantplan.serving.clients.limits import client_limits
from quantplan.serving.launch import running_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running llama-server; its log tells what it did."""

    url: str
    port: int
    plan: Plan
    lines: list[str]

    def counts(self) -> tuple[int, int]:
        """(generations begun, generations finished) so far: timings are printed of those that were not cancelled."""
        self.wait_idle()
        began = sum("processing task, is_child" in line for line in self.lines)
        return began, sum("total time =" in line for line in self.lines)

    def busy_slots(self) -> int:
        with urllib.request.urlopen(f"{self.url}/slots", timeout=10) as answer:
            slots: list[dict[str, Any]] = json.loads(answer.read())
        return sum(slot["is_processing"] for slot in slots)

    def wait_idle(self, seconds: float = 5.0) -> float:
        """Seconds until no slot works."""
        began = time.monotonic()
        while self.busy_slots():
            assert time.monotonic() - began < seconds, "a slot works on for nobody"
            time.sleep(0.01)
        n_lines = -1
        while n_lines != len(self.lines):  # its last lines come by a thread of their own
            n_lines = len(self.lines)
            time.sleep(0.1)
        return time.monotonic() - began


@pytest.fixture(scope="session")
def engine(tiny: Artifact, toolchain: Toolchain) -> Iterator[Engine]:
    plan = read_plan(tiny.folder / "plan.json")
    settings = server_settings(plan, model=tiny.model, port=free_port())
    lines: list[str] = []
    with running_server(toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lines.append) as running:
        yield Engine(url=running.url, port=settings.port, plan=plan, lines=lines)


@pytest.fixture(scope="session")
def proxy(engine: Engine) -> Iterator[FaultProxy]:
    with fault_proxy(engine.port) as found:
        yield found


def write_client(folder: Path, language: Language, plan: Plan, *, base_url: str = "http://127.0.0.1:8080") -> Path:
    for name, text in client_files(language, client_limits(plan, sha256="ab" * 32, base_url=base_url)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def client_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The generated Python package, imported from where it was written."""
    from serving.tiny_plan import bare_plan

    folder = write_client(tmp_path_factory.mktemp("python-client"), Language.PYTHON, bare_plan())
    sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module("quantplan_client")
        assert found.__file__ is not None
        assert Path(found.__file__).parent.parent == folder
        yield found
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated TypeScript client, TypeScript itself, and the driver compiled."""
    from serving.clients import node_driver
    from serving.tiny_plan import bare_plan

    node_driver.require_node()
    folder = write_client(tmp_path_factory.mktemp("typescript-client"), Language.TYPESCRIPT, bare_plan())
    node_driver.install_typescript(folder)
    node_driver.copy_driver(folder)
    done = node_driver.compile_strictly(folder, ["drive.ts"], types=["node"])
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="session")
def node(typescript: Path) -> Iterator[Any]:
    from serving.clients.node_driver import start_driver

    driver = start_driver(typescript)
    yield driver
    assert driver.child.stdin is not None
    assert driver.child.stdout is not None
    driver.child.stdin.close()
    assert driver.child.wait(timeout=10) == 0
    driver.child.stdout.close()
