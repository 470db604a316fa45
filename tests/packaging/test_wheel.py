"""The wheel: what it holds, what it wants, and that an installed quantplan finds its data."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(ROOT)], check=True, timeout=300)
    return next(folder.glob("quantplan-*.whl"))


def test_data_and_types_are_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "data/catalog.json", "data/schemas/plan-1.schema.json",
                 "data/bundled/quantplan-tiny/model.safetensors", "data/bundled/eval/prose.txt",
                  "serving/clients/python/py.typed", "serving/clients/typescript/quantplan-client.ts",
                  "report/page.js", "report/page.css"):  # fmt: skip
        assert f"quantplan/{name}" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/")) or "__pycache__" in name]


def test_the_base_install_wants_no_compiler_no_torch_no_engine(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    required = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    base = sorted(line.split(">")[0].split(";")[0].strip() for line in required if "extra ==" not in line)
    assert base == ["click", "gguf", "huggingface-hub", "nvidia-ml-py", "pandas", "psutil", "pyyaml", "tomli"]
    assert not [line for line in required if line.lower().startswith(("llama-cpp-python", "llama_cpp_python"))]


def test_an_installed_quantplan_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(argv, check=True, timeout=300)
    done = subprocess.run(
        [sys.executable, "-c", "import quantplan; print(quantplan.__file__)\n"
         "from quantplan.cli.main import main; main(['recommend', 'meta-llama/Llama-3.1-8B-Instruct'])"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(target / "quantplan" / "__init__.py")
    assert "8.03 B parameters" in done.stdout
