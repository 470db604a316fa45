"""Each outside package has one importer, or one layer: read from the source, imports inside functions included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "quantplan"
ALLOWED = {
    "huggingface_hub": {"model/hub.py", "model/hub_push.py"},
    "model_signing": {"artifact/sign.py"},
    "pynvml": {"hardware/nvml.py"},
    "amdsmi": {"hardware/amdsmi.py"},
    "click": {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "cli").glob("*.py")},
    "subprocess": {
        "llama/process.py",
        "serving/launch.py",
        "serving/supervise.py",
        "rehearsal/watch.py",
    },  # after the first: the type
    "httpx": {"serving/clients/python/aio.py", "serving/clients/python/exchange.py"},  # sources of clients
    "torch": set(),
    "transformers": set(),
}


def importers(package: str) -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name == package or name.startswith(f"{package}.") for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_only_these_import_it(package: str) -> None:
    assert importers(package) <= ALLOWED[package]


def test_only_the_door_starts_processes() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "process.py":
            assert "subprocess.run(" not in text, path
            assert "subprocess.Popen(" not in text, path
            assert "os.system(" not in text, path
