"""Finding the tools, with programs that really run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantplan.errors import ToolMissing
from quantplan.llama import toolchain
from quantplan.llama.types import REQUIRED_TOOLS, Origin

VERSION = "version: 0.5.0-dev (build 11312, commit 0c1e570)"


def _program(path: Path, says: str = VERSION) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTPLAN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_nothing_found(no_cache: Path) -> None:
    with pytest.raises(ToolMissing, match="was not found"):
        toolchain.find_toolchain(environ={"PATH": str(no_cache)})


def test_separate_tools_on_path(no_cache: Path) -> None:
    for tool in REQUIRED_TOOLS:
        _program(no_cache / "bin" / tool)
    found = toolchain.find_toolchain(environ={"PATH": str(no_cache / "bin")})
    assert found.origin is Origin.PATH
    assert found.build.label == "b11312-0c1e570"
    assert found.programs["llama-quantize"] == (str(no_cache / "bin" / "llama-quantize"),)
    assert "llama-bench" in found.missing


def test_the_unified_binary_takes_subcommands(no_cache: Path) -> None:
    _program(no_cache / "llama")
    found = toolchain.find_toolchain(environ={"PATH": str(no_cache)})
    assert found.programs["llama-server"] == (str(no_cache / "llama"), "serve")
    assert found.programs["llama-quantize"] == (str(no_cache / "llama"), "quantize")


def test_option_before_environment_before_path(no_cache: Path) -> None:
    for place in ("option", "environment", "path"):
        for tool in REQUIRED_TOOLS:
            _program(no_cache / place / tool)
    environ = {"PATH": str(no_cache / "path"), toolchain.ENVIRONMENT: str(no_cache / "environment")}
    assert toolchain.find_toolchain(explicit=no_cache / "option", environ=environ).origin is Origin.OPTION
    assert toolchain.find_toolchain(environ=environ).origin is Origin.ENVIRONMENT
    del environ[toolchain.ENVIRONMENT]
    assert toolchain.find_toolchain(environ=environ).origin is Origin.PATH


def test_an_incomplete_folder_names_what_it_lacks(no_cache: Path) -> None:
    _program(no_cache / "bin" / "llama-quantize")
    with pytest.raises(ToolMissing, match="lacks llama-perplexity, llama-server"):
        toolchain.find_toolchain(explicit=no_cache / "bin")


def test_an_old_build_is_noted(no_cache: Path) -> None:
    for tool in REQUIRED_TOOLS:
        _program(no_cache / tool, "version: 8000 (1234567)")
    notes = toolchain.find_toolchain(explicit=no_cache).notes
    assert any("b8000 is older than b8146" in note for note in notes)
    assert any("not the pinned build" in note for note in notes)


def test_a_managed_build_is_known_by_its_manifest(no_cache: Path) -> None:
    folder = toolchain.toolchains_folder() / "0.3.36-cpu-abc"
    for tool in REQUIRED_TOOLS:
        _program(folder / "bin" / tool)
    manifest = {
        "sdist_version": "0.3.36", "sdist_sha256": toolchain.SDIST_SHA256, "commit": toolchain.COMMIT,
        "build_number": 11312, "options": ["-DX=1"], "backend": "cpu", "cpu": toolchain.cpu_key(), "notes": [],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (toolchain.toolchains_folder() / "broken").mkdir()
    (toolchain.toolchains_folder() / "broken" / "manifest.json").write_text("{")
    found = toolchain.find_toolchain(environ={"PATH": ""})
    assert found.origin is Origin.MANAGED
    assert found.engine().version == "b11312-0c1e570"
    assert found.engine().options == ("-DX=1",)
