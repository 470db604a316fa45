"""Tables that scripts write: fresh, and true to the pinned tree and to transformers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.model.hf.families import families
from quantplan.model.hf_config import supported

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tree(toolchain) -> Path:  # type: ignore[no-untyped-def]
    """The pinned llama.cpp, or what of it the toolchain keeps to convert with."""
    import os

    from quantplan.llama.toolchain import converter_script

    given = os.environ.get("QUANTPLAN_LLAMA_TREE")
    script = converter_script(toolchain)
    if given:
        return Path(given)
    if script is None:
        pytest.skip("the converter is not installed; install it with: quantplan toolchain install")
    return script.parent


def check(script: str, *argv: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *argv, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"stale: run scripts/{script}\n{done.stderr[-2000:]}"


@pytest.mark.build
@pytest.mark.tools
def test_the_defaults_are_those_of_transformers(tree: Path) -> None:
    check("hf_defaults.py", "--tree", str(tree))


@pytest.mark.tools
def test_the_table_of_architectures_is_fresh(tree: Path) -> None:
    if not (tree / "src" / "llama-arch.cpp").is_file():
        pytest.skip("only the converter of the tree is kept here, not the engine's sources")
    check("architectures.py", "--tree", str(tree))


@pytest.mark.tools
def test_every_name_we_support_is_registered(tree: Path) -> None:
    text = "\n".join(path.read_text() for path in sorted((tree / "conversion").glob("*.py")))
    assert [name for name in supported() if f'"{name}"' not in text] == []


def test_the_table_names_what_is_supported() -> None:
    rows = re.findall(r"^\| (\S+) \| exact \| \w+ \| (.*?) \|$", (ROOT / "docs" / "architectures.md").read_text(), re.M)
    told = {name for _, names in rows for name in names.split(", ")}
    assert told == set(families())
    assert len(rows) >= 60


@pytest.mark.build
@pytest.mark.tools
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma4", "jamba"])
def test_the_goldens_are_the_converters(model_type: str, tree: Path, tmp_path: Path) -> None:
    import json

    goldens = json.loads((ROOT / "tests" / "data" / "converter_goldens.json").read_text())["configurations"]
    script = [sys.executable, str(ROOT / "scripts" / "weightless_from_converter.py"), "--tree", str(tree)]
    subprocess.run([*script, "--model-type", model_type, "--output", str(tmp_path)], check=True, capture_output=True)
    goldens_now = tmp_path / "now.json"
    write = [
        sys.executable,
        str(ROOT / "scripts" / "converter_goldens.py"),
        str(tmp_path),
        "--output",
        str(goldens_now),
    ]
    subprocess.run(write, check=True)
    assert json.loads(goldens_now.read_text())["configurations"][model_type] == goldens[model_type]


@pytest.mark.build
@pytest.mark.tools
def test_fit_params_says_the_same_of_our_file_and_the_converters(tree: Path) -> None:
    """A dense, a hybrid and a mixture with a latent cache; the script does all of the catalog."""
    names = ("Llama-3.2-1B", "LFM2-1.2B", "DeepSeek-V2-Lite")
    only = [word for name in names for word in ("--only", name)]
    argv = [sys.executable, str(ROOT / "scripts" / "facts_against_converter.py"), "--tree", str(tree), *only, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["name"]: row["ours"] for row in rows} == {row["name"]: row["converters"] for row in rows}
    assert sorted(row["name"] for row in rows) == sorted(names), done.stderr[-2000:]
    assert done.returncode == 0
