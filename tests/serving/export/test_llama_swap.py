"""llama-swap's configuration: its own schema, what fits together, and the command really started."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from serving import engine as engines
from serving.export.cases import CASES, deployment
from serving.export.deployed import deployed
from serving.export.read_llama_swap import commands
from serving.gateway.front_door import ask
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Margin, PlannedDevice
from quantplan.artifact.store import Artifact
from quantplan.errors import CannotExport, DoesNotFit, TargetTooOld
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target
from quantplan.units import GIB

MIB = 1 << 20


def document(deployments: Sequence[Deployment]) -> dict[str, Any]:
    (file,) = export("llama-swap", tuple(deployments)).files
    found: dict[str, Any] = yaml.safe_load(file.text)
    return found


def sized(told: Deployment, name: str, gib: int, *, capacity_gib: int | None) -> Deployment:
    """The deployment under another name, with so much on a card of that capacity."""
    known = capacity_gib is not None
    card = PlannedDevice(name="CUDA0", model_bytes=gib * GIB, context_bytes=0, compute_bytes=0, output_bytes=0,
                         overhead_bytes=0, free_bytes=None,
                         capacity_bytes=(capacity_gib or 0) * GIB if known else None)  # fmt: skip
    host = PlannedDevice(name="Host", model_bytes=MIB, context_bytes=0, compute_bytes=0, output_bytes=0,
                         overhead_bytes=0, capacity_bytes=64 * GIB if known else None, free_bytes=None)  # fmt: skip
    margin = (Margin(device="CUDA0", bytes=GIB, why="test"),)
    plan = replace(told.plan, model=name, memory=(card, host), margin=margin, cache_ram_bytes=0)
    return replace(told, plan=plan)


@pytest.fixture
def told(tmp_path: Path) -> Deployment:
    return deployment(tmp_path, CASES[0])


def test_its_schema_takes_it(told: Deployment, shared: Path, tmp_path: Path) -> None:
    schema = json.loads((shared / "schemas" / "llama-swap.json").read_text(encoding="utf-8"))
    several = [sized(told, name, 5, capacity_gib=12) for name in ("a", "b", "c")]
    for deployments in ([told], several, *([deployment(tmp_path / case.name, case)] for case in CASES)):
        jsonschema.Draft7Validator(schema).validate(document(deployments))
    wrong = document([told])
    wrong["models"][told.alias]["concurrencyLimit"] = "4"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(wrong)


def test_slots_and_queue_are_its_limit(told: Deployment) -> None:
    model = document([replace(told, target=replace(told.target, n_queue=3))])["models"][told.alias]
    assert model["concurrencyLimit"] == 2 + 3
    assert model["metadata"]["artifact-sha256"] == told.sha256
    assert model["metadata"]["plan-sha256"] == told.plan_sha256


def expanded(document: dict[str, Any]) -> set[frozenset[str]]:
    """The matrix's sets by the models' names."""
    names = document["matrix"]["vars"]
    return {frozenset(names[word] for word in re.split(r" & ", one)) for one in document["matrix"]["sets"].values()}


def test_the_matrix_is_what_fits_together(told: Deployment) -> None:
    sizes = {"a": 10, "b": 7, "c": 6, "d": 4, "e": 3}
    found = expanded(document([sized(told, name, gib, capacity_gib=18) for name, gib in sizes.items()]))
    fitting = [frozenset(chosen) for n in range(1, 6) for chosen in combinations(sizes, n)
               if sum(sizes[name] for name in chosen) <= 17]  # fmt: skip
    assert found == {one for one in fitting if not any(one < other for other in fitting)}
    assert frozenset("ab") in found and frozenset("bcd") in found


def test_unknown_capacities_one_at_a_time_and_too_large_ones(told: Deployment) -> None:
    found = expanded(document([sized(told, name, 1, capacity_gib=None) for name in "ab"]))
    assert found == {frozenset("a"), frozenset("b")}
    with pytest.raises(DoesNotFit, match="CUDA0"):
        document([sized(told, "a", 12, capacity_gib=12)])


def test_what_it_cannot_say(told: Deployment) -> None:
    with pytest.raises(CannotExport, match="two models are called"):
        document([told, told])
    odd = replace(told, plan=replace(told.plan, model="a${PORT}"))
    with pytest.raises(CannotExport, match="reads as one of its macros"):
        document([odd])
    with pytest.raises(TargetTooOld, match="llama-swap v190 is too old: matrix needs 219"):
        export("llama-swap", (told,), version="v190")
    assert any("QUANTPLAN_API_KEY" in note for note in export("llama-swap", (told,)).notes)


@pytest.mark.tools
@pytest.mark.build
def test_its_command_starts_the_server_as_planned(tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> None:
    """llama-swap itself is in no registry that tests may use: its command is started here as it would."""
    program = tuple(map(str, toolchain.programs["llama-server"]))
    found = deployed(tiny, tmp_path, target=Target(program=program))
    (argv,) = commands(document([found])).values()
    port = free_port()
    argv[argv.index("--port") + 1] = str(port)
    with engines.running(argv, port):
        props = json.loads(ask(f"http://127.0.0.1:{port}/props")[2])
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 1024)
    assert props["model_path"] == str(found.model.path)
