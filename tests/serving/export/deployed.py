"""Deployments of the bundled model, and a real engine as each of them says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import engine as engines

from quantplan.artifact.plan_file import Figure, Plan, PlannedDevice, read_plan, write_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment, deployment_of
from quantplan.serving.export.exported import Exported
from quantplan.serving.export.target import Target
from quantplan.serving.source import find_served


def deployed(artifact: Artifact, tmp_path: Path, *, target: Target | None = None, **changes: Any) -> Deployment:
    """The artifact with its plan, changed so."""
    plan = replace(read_plan(artifact.folder / "plan.json"), **changes)
    path = tmp_path / f"{plan.model.rsplit('/', 1)[-1]}-plan.json"
    write_plan(path, plan)
    served = find_served(artifact.folder, plan_file=path)
    return deployment_of(served, plan_file=path, target=target or Target())


def on_cards(plan: Plan, n_cards: int, *, capacity_bytes: int = 24 << 30) -> tuple[PlannedDevice, ...]:
    """The plan's memory with `n_cards` CUDA cards beside the host."""
    host = next(device for device in plan.memory if device.name == "Host")
    card = replace(host, model_bytes=4 << 20, context_bytes=8 << 20, compute_bytes=8 << 20, overhead_bytes=400 << 20,
                   capacity_bytes=capacity_bytes, free_bytes=capacity_bytes)  # fmt: skip
    return (*(replace(card, name=f"CUDA{index}") for index in range(n_cards)), host)


def speed(value: float, *, low: float | None = None, origin: str = "calculated") -> Figure:
    return Figure(value=value, low=low or value / 2, high=value * 2, origin=origin)


@contextmanager
def running_engine(told: Deployment, tools: Toolchain) -> Iterator[int]:
    """llama-server by the deployment's own command; its pid."""
    program = tools.programs["llama-server"]
    assert unified_per_slot(tools)
    argv = told.argv(program, host="127.0.0.1", port=told.target.port)
    with engines.running(list(argv), told.target.port) as child:
        yield child.pid


def put(folder: Path, exported: Exported) -> Path:
    """The files of an export in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in exported.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        path.chmod(file.mode)
    return folder
