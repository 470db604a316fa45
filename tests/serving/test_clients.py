"""Real clients through `quantplan serve`, with a key."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving.openai_clients import ClientUrl, check_all_clients
from serving.serve_process import serving

from quantplan.artifact.store import Artifact
from quantplan.llama.types import Toolchain

pytestmark = [pytest.mark.tools, pytest.mark.build, pytest.mark.clients]


@pytest.mark.filterwarnings("default")  # other people's packages warn as they like
def test_the_clients_work_unchanged(tiny: Artifact, toolchain: Toolchain, node_modules: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    with serving(tiny.folder, tmp_path, "--api-key-file", key) as run:
        told = check_all_clients(ClientUrl(base=f"{run.ready['url']}/v1", key=key.read_text().strip()), node_modules)
    assert told["python"]["embeddings"] == told["node"]["embeddings"] == 501
