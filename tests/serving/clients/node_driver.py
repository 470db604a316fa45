"""The generated TypeScript client: type-checked, compiled, and driven in a Node process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving.openai_clients import node_missing, node_program

PACKAGES = ("typescript@7.0.2", "@types/node@20.19.25")
DRIVER = Path(__file__).with_name("drive.ts")
STRICT = {
    "strict": True, "noUncheckedIndexedAccess": True, "exactOptionalPropertyTypes": True, "noImplicitReturns": True,
    "noFallthroughCasesInSwitch": True, "noUnusedLocals": True, "noUnusedParameters": True,
    "noPropertyAccessFromIndexSignature": True, "noImplicitOverride": True, "erasableSyntaxOnly": True,
    "verbatimModuleSyntax": True, "target": "es2022", "module": "nodenext", "outDir": "out",
    "lib": ["es2022", "dom", "dom.iterable", "dom.asynciterable"],
}  # fmt: skip


class NodeError(Exception):
    """What the client threw, by its class's name."""

    def __init__(self, told: dict[str, Any], seconds: float) -> None:
        super().__init__(f"{told['name']}: {told['message']}")
        self.name, self.told, self.seconds = told["name"], told, seconds


def require_node() -> None:
    why = node_missing()
    if why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def install_typescript(folder: Path) -> None:
    done = subprocess.run(
        [*node_program("npm"), "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), *PACKAGES],
        capture_output=True, text=True, timeout=300, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compile_strictly(folder: Path, files: list[str], *, types: list[str]) -> subprocess.CompletedProcess[str]:
    """tsc with every strictness there is."""
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": {**STRICT, "types": types}, "files": files}))
    tsc = folder / "node_modules" / "typescript" / "bin" / "tsc"
    return subprocess.run(
        [*node_program("node"), str(tsc), "-p", str(folder)], capture_output=True, text=True, timeout=120, check=False
    )


@dataclass(slots=True)
class NodeDriver:
    """A Node process that runs commands one after another."""

    child: subprocess.Popen[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    seconds: float = 0.0

    def __call__(self, op: str, **told: Any) -> Any:
        """The command's value. Raises NodeError."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with self.lock:
            self.child.stdin.write(json.dumps({"op": op, **told}) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        result = json.loads(line)
        self.seconds = result["seconds"]
        if "error" in result:
            raise NodeError(result["error"], result["seconds"])
        return result.get("value")


def start_driver(folder: Path) -> NodeDriver:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NODE_", "HTTP", "http"))}
    child = subprocess.Popen(
        [*node_program("node"), str(folder / "out" / "drive.js")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip
    return NodeDriver(child)


def copy_driver(folder: Path) -> None:
    shutil.copyfile(DRIVER, folder / DRIVER.name)
