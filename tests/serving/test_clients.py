"""Real clients through llama-server as `serve` starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving.openai_clients import ClientUrl, check_all_clients
from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.clients]


@pytest.mark.filterwarnings("default")  # other people's packages warn as they like
def test_the_clients_work_unchanged_and_are_answered_alike(
    tiny: Artifact, toolchain: Toolchain, node_modules: Path
) -> None:
    settings = server_settings(read_plan(tiny.folder / "plan.json"), model=tiny.model, port=free_port())
    with running_server(
        toolchain, settings, unified_per_slot=unified_per_slot(toolchain), log=lambda _line: None
    ) as running:
        told = check_all_clients(ClientUrl(base=f"{running.url}/v1"), node_modules)
    assert told["python"]["embeddings"] == told["node"]["embeddings"] == 501
