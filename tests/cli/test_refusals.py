"""Bad input to build, serve and toolchain: one sentence, a hint, the exit status, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.places import data_file

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, timeout=120,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    for words in says:
        assert words in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Hint: ")], done.stderr
    assert "Traceback" not in done.stderr


def model(folder: Path, *, architecture: str = "LlamaForCausalLM") -> Path:
    """The bundled model, changed."""
    shutil.copytree(data_file("bundled", "quantplan-tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    return folder


def test_build_of_an_unknown_model(tmp_path: Path) -> None:
    refused(run("build", "nosuch", cwd=tmp_path), 1, "no model called 'nosuch'", "quantplan-tiny")
    refused(run("build", "./nosuch", cwd=tmp_path), 1, "no such folder")
    (tmp_path / "x.gguf").touch()
    refused(run("build", "x.gguf", cwd=tmp_path), 1, "build starts from a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_build_of_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    refused(run("build", "m", cwd=tmp_path), 1, "m: has no config.json")
    assert not (tmp_path / "artifacts").exists()


def test_build_of_an_unknown_preset(tmp_path: Path) -> None:
    done = run("build", "quantplan-tiny", "--quant", "Q4_K_Z", cwd=tmp_path)
    refused(done, 2, "preset 'Q4_K_Z' is unknown to llama-quantize", "near names")


def test_build_of_a_preset_that_needs_an_importance_matrix(tmp_path: Path) -> None:
    done = run("build", "quantplan-tiny", "--quant", "IQ2_XXS", cwd=tmp_path)
    refused(done, 2, "preset 'IQ2_XXS' needs an importance matrix for this model")
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.tools
@pytest.mark.build
def test_build_of_an_unsupported_architecture(tmp_path: Path, toolchain: object) -> None:
    model(tmp_path / "m", architecture="NoSuchForCausalLM")
    refused(run("build", "m", cwd=tmp_path), 1, "architecture 'NoSuchForCausalLM' is not supported")
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.tools
@pytest.mark.build
def test_build_without_disk_space(tmp_path: Path, toolchain: object) -> None:
    """A checkpoint of 3 TiB without weights: a hole where they would be."""
    from toy_models import llama_config, llama_shapes

    from quantplan.model.safetensors_header import SafetensorsTensor
    from quantplan.rehearsal.through_converter import write_safetensors_hole

    folder = model(tmp_path / "m")
    config = llama_config(
        hidden_size=16384, intermediate_size=65536, num_hidden_layers=400, num_attention_heads=256,
        num_key_value_heads=256,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {**llama_shapes(config), "lm_head.weight": (768, 16384)}
    tensors = [SafetensorsTensor(name=name, dtype="BF16", shape=shape) for name, shape in shapes.items()]
    write_safetensors_hole(folder / "model.safetensors", tensors)
    refused(run("build", "m", cwd=tmp_path), 1, "of disk space needed", "--output")
    assert not (tmp_path / "artifacts").exists()


def test_no_tools(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "QUANTPLAN_CACHE": str(tmp_path / "cache"), "QUANTPLAN_LLAMA_BIN": ""}
    refused(
        run("build", "quantplan-tiny", cwd=tmp_path, **nowhere),
        1,
        "llama.cpp was not found",
        "quantplan toolchain install",
    )
    refused(run("toolchain", "status", cwd=tmp_path, **nowhere), 1, "llama.cpp was not found")


def test_no_compiler(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "QUANTPLAN_CACHE": str(tmp_path / "cache"), "CXX": ""}
    done = run("toolchain", "install", cwd=tmp_path, **nowhere)
    refused(done, 1, "C++ compiler was not found", "apt-get install g++")
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_another_source_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    cache = {"QUANTPLAN_CACHE": str(tmp_path / "cache")}
    refused(
        run("toolchain", "install", "--sdist", "x.tar.gz", cwd=tmp_path, **cache), 1, "sha256 is", "832db0699007f1be"
    )


def test_serve_of_what_is_no_artifact(tmp_path: Path) -> None:
    refused(run("serve", "nosuch", cwd=tmp_path), 1, "no such artifact")
    (tmp_path / "a").mkdir()
    refused(run("serve", "a", cwd=tmp_path), 1, "has no artifact.json")
    (tmp_path / "a" / "artifact.json").write_text("{")
    refused(run("serve", "a", cwd=tmp_path), 4, "is not a receipt")
    refused(run("serve", "a", "--port", "0", cwd=tmp_path), 2, "--port")


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    done = run("--debug", "build", "nosuch", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Error: no model called 'nosuch'" in done.stderr
