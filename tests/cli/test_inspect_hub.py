"""`quantplan inspect` of what lies on a hub, whole process: stdout, stderr and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_fixture import write_gguf
from loopback_hub import LoopbackHub
from toy_checkpoint import checkpoint_files


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


def inspect(hub: LoopbackHub, cache: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "", "QUANTPLAN_CACHE": str(cache), **env}
    argv = [sys.executable, "-m", "quantplan", "inspect", *args]
    return subprocess.run(argv, env=own, capture_output=True, text=True, check=False)


def test_a_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add("org/toy", checkpoint_files(), licence="apache-2.0").commit
    done = inspect(hub, tmp_path, "org/toy", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    told = json.dumps(data)
    assert commit in told
    assert "apache-2.0" in told
    assert data["sizes"]["F16"]["tensor_bytes"] > 0
    weights = [entry for entry in hub.log if entry.byte_range]
    assert sum(entry.n_sent for entry in weights) < 20_000
    hub.log.clear()
    again = inspect(hub, tmp_path, f"org/toy@{commit}", "--json")
    assert json.loads(again.stdout)["data"] == data
    assert hub.log == []
    offline = inspect(hub, tmp_path, "org/toy", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0
    assert "Warning: the hub was not asked (org/toy: the hub may not be asked (offline mode)" in offline.stderr


def test_refusals_have_a_hint_and_a_document(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("org/gated", checkpoint_files(), gated=True)
    done = inspect(hub, tmp_path, "org/gated", "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("RepositoryGated", 1)
    assert done.stderr == (
        "Error: org/gated: this repository is gated: no token was given\n"
        "Hint: accept its terms at https://huggingface.co/org/gated, then: hf auth login\n"
    )


def test_a_gguf_must_be_chosen(hub: LoopbackHub, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    hub.add("org/m-GGUF", {"m-Q4_K_M.gguf": content, "m-Q8_0.gguf": content})
    done = inspect(hub, tmp_path / "cache", "org/m-GGUF")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: org/m-GGUF: it has 2 models: Q4_K_M, Q8_0\nHint: name one of them: org/m-GGUF:Q4_K_M\n"
    )
