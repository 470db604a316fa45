"""The bundled model as an artifact, made once for all tests that serve it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving.openai_clients import node_modules
from serving.tiny_plan import planned

from quantplan.artifact.plan_file import write_plan
from quantplan.artifact.receipt import Receipt, entry_of, write_receipt
from quantplan.artifact.results import Result, Verdict, write_result
from quantplan.artifact.store import Artifact, find_artifact
from quantplan.llama import commands
from quantplan.llama.process import run_tool
from quantplan.llama.types import Toolchain
from quantplan.places import data_file

__all__ = ["node_modules"]
NAME = "quantplan-tiny-Q4_K_M"


@pytest.fixture(scope="session")
def bf16(tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain) -> Path:
    """The bundled model as a BF16 GGUF, by the converter of the toolchain."""
    from quantplan.llama.toolchain import converter_script

    script = converter_script(toolchain)
    assert script is not None, "quantplan toolchain install --converter"
    path = tmp_path_factory.mktemp("bf16") / "quantplan-tiny-BF16.gguf"
    run_tool(commands.convert((sys.executable,), script, data_file("bundled", "quantplan-tiny"), path), step="convert")
    return path


@pytest.fixture(scope="session")
def quantized(bf16: Path, toolchain: Toolchain) -> Callable[[str], Path]:
    """The bundled model at a preset, made when first asked for."""

    def make(preset: str) -> Path:
        path = bf16.with_name(f"quantplan-tiny-{preset}.gguf")
        if not path.exists():
            run_tool(commands.quantize(toolchain.programs["llama-quantize"], bf16, path, preset, n_threads=2),
                     step="quantize")  # fmt: skip
        return path

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, quantized: Callable[[str], Path]) -> Artifact:
    """An artifact of the bundled model with a passing gate result and the plan `tiny_plan` (not built: the end-to-end
    tests build one; here the model is converted and quantized, and the rest is written as a build writes it)."""
    folder = tmp_path_factory.mktemp("artifacts") / NAME
    folder.mkdir()
    model = folder / f"{NAME}.gguf"
    shutil.copyfile(quantized("Q4_K_M"), model)
    file = entry_of(model)
    tools = {"tool": "llama.cpp", "commit": "0c1e570"}
    write_receipt(folder, Receipt(files=(file,), quant="Q4_K_M", source={}, tools=tools, steps=(), texts=()))
    result = Result(artifact_sha256=file.sha256, policy="default", verdict=Verdict.PASS, metrics=(), tool={}, host={})
    write_result(folder, "gate", result)
    write_plan(folder / "plan.json", planned(model, sha256=file.sha256))
    return find_artifact(folder)
