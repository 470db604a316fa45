"""scripts/refresh_catalog.py against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from toy_checkpoint import CONFIG, checkpoint_files

ROOT = Path(__file__).resolve().parents[2]
N_PARAMETERS = 2 * 96 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A catalog of two models of one configuration."""
    row: dict[str, Any] = {
        "name": "toy", "aliases": [], "parameters": N_PARAMETERS, "published": N_PARAMETERS, "licence": "mit",
        "released": "2025-01", "uses": ["chat"], "config": "org/toy", "gguf": [],
        "source": {"config": "https://huggingface.co/org/toy/blob/main/config.json", "how": "by hand"},
    }  # fmt: skip
    told = {"source": "a test", "configs": {"org/toy": CONFIG}, "models": [{"id": "org/toy", **row},
            {"id": "org/other", **row}]}  # fmt: skip
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps(told))
    return path


def refresh(table: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts" / "refresh_catalog.py"), "--catalog", str(table), *words]
    own = {**os.environ, "QUANTPLAN_CACHE": str(table.parent / "cache"), "HF_TOKEN": "", **env}
    return subprocess.run(argv, env=own, capture_output=True, text=True, check=False)


def test_offline_is_the_default(table: Path) -> None:
    done = refresh(table, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, "offline: would ask the hub about 2 models; --online does\n")


def test_what_agrees_changes_nothing(table: Path) -> None:
    before = table.read_text()
    with LoopbackHub() as hub:
        hub.add("org/toy", checkpoint_files(), licence="mit")
        done = refresh(table, "--online", "--write", "org/toy", HF_ENDPOINT=hub.url)
    assert (done.returncode, done.stdout) == (0, "1 models: 0 differ, 0 could not be read\n"), done.stderr
    assert table.read_text() == before


def test_what_differs_is_told_and_taken_over_for_that_model_alone(table: Path) -> None:
    files = checkpoint_files()
    files["config.json"] = json.dumps({**CONFIG, "max_position_embeddings": 1024}).encode()
    with LoopbackHub() as hub:
        commit = hub.add("org/toy", files, licence="apache-2.0").commit
        told = refresh(table, "--online", "org/toy", HF_ENDPOINT=hub.url)
        assert told.returncode == 1
        assert told.stdout.splitlines() == [
            "org/toy: context_length 512 -> 1024", "org/toy: licence mit -> apache-2.0",
            "1 models: 1 differ, 0 could not be read",
        ]  # fmt: skip
        assert refresh(table, "--online", "--write", "org/toy", HF_ENDPOINT=hub.url).returncode == 0
    after = json.loads(table.read_text())
    toy, other = after["models"]
    assert after["configs"][toy["config"]]["max_position_embeddings"] == 1024
    assert after["configs"][other["config"]]["max_position_embeddings"] == 512
    assert (toy["licence"], toy["published"], other["licence"]) == ("apache-2.0", N_PARAMETERS, "mit")
    assert toy["source"]["config"] == f"https://huggingface.co/org/toy/blob/{commit}/config.json"


def test_what_cannot_be_read_stays_and_counts(table: Path) -> None:
    before = table.read_text()
    with LoopbackHub() as hub:
        done = refresh(table, "--online", "--write", "org/toy", HF_ENDPOINT=hub.url)
    assert done.returncode == 1
    assert done.stdout == "1 models: 0 differ, 1 could not be read\n"
    assert "org/toy: " in done.stderr
    assert table.read_text() == before


def test_a_model_that_the_catalog_lacks(table: Path) -> None:
    done = refresh(table, "--online", "org/nosuch")
    assert (done.returncode, done.stderr) == (2, "not in the catalog: org/nosuch\n")
