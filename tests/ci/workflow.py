"""Runs the `run:` steps of a composite action as GitHub does: expressions replaced, outputs read back, bash."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


@dataclass
class ActionRun:
    """One run: `outputs` by step id, the status and output of every step that ran."""

    inputs: Mapping[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def value(self, expression: str) -> str:
        """`inputs.x` and `steps.a.outputs.b`: the only expressions that the action uses outside conditions."""
        head, *rest = expression.split(".")
        if head == "inputs":
            return self.inputs[rest[0]]
        assert (head, rest[1]) == ("steps", "outputs"), expression
        return self.outputs.get(rest[0], {}).get(rest[2], "")

    def fill(self, text: str) -> str:
        return _EXPRESSION.sub(lambda found: self.value(found[1]), text)

    def condition(self, told: str | None) -> bool:
        """`a != 'b'` and `always() && a != 'b'`; without always() a step runs only while none has failed."""
        expression = told or "true"
        found = _EXPRESSION.fullmatch(expression)
        parts = [part.strip() for part in (found[1] if found else expression).split("&&")]
        always = "always()" in parts
        holds = all(self._part(part) for part in parts if part not in ("always()", "true"))
        return holds and (always or not self.failed)

    def _part(self, part: str) -> bool:
        found = re.fullmatch(r"(\S+) != '([^']*)'", part)
        assert found is not None, part
        return self.value(found[1]) != found[2]


def run_action(action: Path, *, given: Mapping[str, str], cwd: Path, env: Mapping[str, str]) -> ActionRun:
    """Every step of the action in order, as a runner would."""
    told = load(action)
    inputs = {name: str(one.get("default", "")) for name, one in told["inputs"].items()} | dict(given)
    run = ActionRun(inputs=inputs)
    for step in told["runs"]["steps"]:
        if not run.condition(step.get("if")):
            continue
        output = cwd / "github_output"
        output.write_text("")
        own = {name: run.fill(str(value)) for name, value in step.get("env", {}).items()}
        assert "${{" not in step["run"], "an expression inside a script can be injected into"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], cwd=cwd, check=False, text=True,
            capture_output=True, env={**env, **own, "GITHUB_OUTPUT": str(output)}, timeout=600,
        )  # fmt: skip
        name = step.get("id") or step["name"]
        run.statuses[name], run.said[name] = done.returncode, done.stdout + done.stderr
        run.outputs[name] = read_outputs(output.read_text())
        run.failed = run.failed or done.returncode != 0
    return run


def read_outputs(text: str) -> dict[str, str]:
    """`name=value` lines and `name<<END … END` blocks."""
    found, lines = {}, iter(text.splitlines())
    for line in lines:
        block = re.fullmatch(r"(\w+)<<(\w+)", line)
        if block:
            inside = []
            for each in lines:
                if each == block[2]:
                    break
                inside.append(each)
            found[block[1]] = "\n".join(inside)
        elif "=" in line:
            name, _, value = line.partition("=")
            found[name] = value
    return found


def tool_folder(tmp_path: Path, root: Path, python: str) -> Path:
    """A folder with `quantplan` and `python`, as an installed package has them on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (folder / "quantplan").write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{python}" -m quantplan "$@"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    return folder


def clean_environment(tmp_path: Path, tools: Path) -> dict[str, str]:
    """This environment without another runner's variables, with a state of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "CI_", "QUANTPLAN_STATE"))}
    state = {"QUANTPLAN_STATE": str(tmp_path / "state")}
    return {**kept, **state, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
