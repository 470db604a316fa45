"""A build file as a workflow of GitHub Actions: a matrix a stage, what needs others in a later one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantplan.pipeline.fleet_export import Place, Tasks

OUTPUT = "artifacts"


def workflow(told: Tasks, place: Place) -> Mapping[str, Any]:
    """The document of the workflow."""
    stages = sorted({task.unit.stage for task in told.tasks})
    jobs: dict[str, Any] = {}
    for stage in stages:
        needs = {"needs": [f"stage-{stage}"]} if stage else {}
        jobs[f"stage-{stage + 1}"] = {**needs, **_job(told, place, stage)}
    return {
        "name": "quantplan fleet",
        "on": {"workflow_dispatch": {}},
        "permissions": {"contents": "read"},
        "concurrency": {"group": "quantplan-fleet", "cancel-in-progress": False},
        "jobs": jobs,
    }


def _job(told: Tasks, place: Place, stage: int) -> dict[str, Any]:
    include = [{"build": task.name, "commands": task.script} for task in told.tasks if task.unit.stage == stage]
    return {
        "name": "${{ matrix.build }}",
        "runs-on": place.runner,
        "timeout-minutes": 350,
        "strategy": {"fail-fast": False, "max-parallel": told.fleet.jobs, "matrix": {"include": include}},
        "defaults": {"run": {"shell": "bash", "working-directory": place.directory}},
        "steps": _steps(place),
    }


def _steps(place: Place) -> list[dict[str, Any]]:
    output = OUTPUT if place.directory == "." else f"{place.directory}/{OUTPUT}"
    cache = "~/.cache/quantplan/toolchains"
    return [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.12"}},
        {"uses": "actions/cache@v4",
         "with": {"path": cache, "key": f"quantplan-${{{{ runner.os }}}}-${{{{ runner.arch }}}}-{place.package}"}},
        {"name": "Install", "env": {"PACKAGE": place.package},
         "run": 'python -m pip install --quiet "$PACKAGE"\nquantplan toolchain install --converter\n'},
        {"name": "Build", "env": {"COMMANDS": "${{ matrix.commands }}", "HF_TOKEN": "${{ secrets.HF_TOKEN }}"},
         "run": 'bash -euo pipefail -c "$COMMANDS"\n'},
        {"name": "Keep", "if": "${{ always() }}", "uses": "actions/upload-artifact@v4",
         "with": {"name": "${{ matrix.build }}", "path": f"{output}/*/", "if-no-files-found": "warn"}},
    ]  # fmt: skip
