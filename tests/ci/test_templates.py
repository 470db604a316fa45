"""The action, the GitLab template and the hook: valid by their schemas, and run here on the bundled model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workflow import ActionRun, clean_environment, load, read_outputs, run_action, tool_folder

ROOT = Path(__file__).resolve().parents[2]
ACTION, GITLAB, HOOKS = ROOT / "action.yml", ROOT / "docs" / "ci" / "gitlab-ci.yml", ROOT / ".pre-commit-hooks.yaml"


@pytest.mark.parametrize(("schema", "file"), [("vendor.github-actions", ACTION), ("vendor.gitlab-ci", GITLAB)])
def test_valid_by_its_schema(schema: str, file: Path) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_output_of_the_action_is_set_by_a_step() -> None:
    told = load(ACTION)
    script = next(step["run"] for step in told["runs"]["steps"] if step.get("id") == "report")
    for name, output in told["outputs"].items():
        assert output["value"] == f"${{{{ steps.report.outputs.{name} }}}}"
        assert f'echo "{name}=' in script


def test_outputs_are_read_as_github_reads_them() -> None:
    assert read_outputs("a=1=2\nb<<END\nx\ny\nEND\nc=\n") == {"a": "1=2", "b": "x\ny", "c": ""}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def environment(workspace: Path) -> dict[str, str]:
    tools = tool_folder(workspace, ROOT, sys.executable)
    return clean_environment(workspace, tools)


@pytest.fixture(scope="module")
def built(workspace: Path, environment: dict[str, str], toolchain: object) -> ActionRun:
    """The action once, whole but for the installation: builds the bundled model, gates it, reports."""
    env = {**environment, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(workspace / "summary.md")}
    return run_action(ACTION, given={"package": "", "model": "quantplan-tiny"}, cwd=workspace, env=env)


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.slow
def test_the_action_builds_gates_and_reports(built: ActionRun, workspace: Path) -> None:
    assert built.statuses == {"Build": 0, "gate": 0, "report": 0, "Verdict": 0}, built.said
    assert built.outputs["report"] == {
        "verdict": "pass", "junit": "quantplan-out/junit.xml", "sarif": "quantplan-out/quantplan.sarif",
        "comment": "quantplan-out/comment.md",
    }  # fmt: skip
    suites = ET.parse(workspace / "quantplan-out" / "junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == ["quantplan-tiny-Q4_K_M"]
    assert int(suites.get("tests", "0")) >= 5
    assert (suites.get("failures"), suites.get("errors")) == ("0", "0")
    log = json.loads((workspace / "quantplan-out" / "quantplan.sarif").read_text())
    assert all(result["level"] in ("note", "warning") for result in log["runs"][0]["results"])
    assert "✅ pass" in (workspace / "summary.md").read_text()
    assert (workspace / "quantplan-out" / "comment.md").read_text().startswith("<!-- quantplan -->")


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.slow
def test_gitlabs_job_judges_the_same_artifact(built: ActionRun, workspace: Path, environment: dict[str, str]) -> None:
    job = load(GITLAB)[".quantplan-gate"]
    variables = {name: str(value) for name, value in job["variables"].items()} | {
        "CI_PROJECT_DIR": str(workspace), "QUANTPLAN_PACKAGE": "", "QUANTPLAN_OUTPUT": "gitlab-out",
        "QUANTPLAN_ARTIFACTS": "quantplan-out/artifacts/quantplan-tiny-Q4_K_M",
        "QUANTPLAN_CACHE": os.environ.get("QUANTPLAN_CACHE", ""), "QUANTPLAN_STATE": environment["QUANTPLAN_STATE"],
    }  # fmt: skip
    script = "\n".join([*job["before_script"], *job["script"]])
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], cwd=workspace, env={**environment, **variables}, check=False,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for path in job["artifacts"]["paths"]:
        assert (workspace / path.replace("$QUANTPLAN_OUTPUT", "gitlab-out")).is_file()
    assert job["artifacts"]["reports"]["junit"] == "$QUANTPLAN_OUTPUT/junit.xml"


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.slow
def test_an_older_pass_does_not_speak_for_a_file_that_changed(
    built: ActionRun, workspace: Path, environment: dict[str, str]
) -> None:
    folder = workspace / "quantplan-out" / "artifacts" / "quantplan-tiny-Q4_K_M"
    changed = workspace / "changed"
    subprocess.run(["cp", "-r", str(folder), str(changed)], check=True)
    file = next(changed.glob("*.gguf"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # the copy of a hard link is its own file, and stays one
    file.write_bytes(data)
    run = run_action(ACTION, given={"package": "", "artifacts": "changed"}, cwd=workspace, env=environment)
    assert (run.statuses["gate"], run.statuses["Verdict"]) == (0, 4)
    assert run.outputs["report"]["verdict"] == "fail"
    assert 'failures="1"' in (workspace / "quantplan-out" / "junit.xml").read_text()


def test_no_artifact_is_no_pass(tmp_path: Path) -> None:
    env = clean_environment(tmp_path, tool_folder(tmp_path, ROOT, sys.executable))
    (tmp_path / "quantplan-out" / "artifacts").mkdir(parents=True)
    run = run_action(ACTION, given={"package": ""}, cwd=tmp_path, env=env)
    assert run.statuses == {"gate": 0, "Verdict": 2}
    assert "::error title=quantplan::no artifact to judge" in run.said["gate"]


def test_a_gate_that_cannot_measure_is_an_error(tmp_path: Path) -> None:
    env = clean_environment(tmp_path, tool_folder(tmp_path, ROOT, sys.executable))
    (tmp_path / "nothing").mkdir()
    run = run_action(ACTION, given={"package": "", "artifacts": "nothing"}, cwd=tmp_path, env=env)
    assert (run.outputs["gate"]["status"], run.statuses["Verdict"]) == ("1", 1)
    assert run.outputs["report"]["verdict"] == "error"


def test_the_action_installs_what_it_is_told(tmp_path: Path) -> None:
    """The install step with a pip and a quantplan that write down what they were asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("python", "quantplan"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/asked"\n')
        (tools / name).chmod(0o755)
    step = load(ACTION)["runs"]["steps"][0]
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PACKAGE": "quantplan==0.1.0; touch x"}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "asked").read_text().splitlines() == [
        "python -m pip install --quiet quantplan==0.1.0; touch x",
        "quantplan toolchain install --converter",
    ]
    assert not (tmp_path / "x").exists()


def test_the_hook_is_a_command_of_ours_that_takes_files() -> None:
    (hook,) = load(HOOKS)
    assert {"id", "name", "entry", "language", "files"} <= set(hook)
    words = shlex.split(hook["entry"])
    done = subprocess.run(
        [sys.executable, "-m", "quantplan", *words[1:], "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert words[0] == "quantplan"
    assert "ARTIFACTS..." in done.stdout
