"""The real llama-server, started by what the unit and the .env file say, and held to the plan by the unit's check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving.engine import running
from serving.export.read_env import environment, words
from serving.export.read_systemd import command, value
from serving.tiny_plan import free_port, planned

from quantplan.artifact.plan_file import write_plan
from quantplan.artifact.store import Artifact
from quantplan.cli.export_programs import checker
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import deployment_of
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target
from quantplan.serving.launch import chat
from quantplan.serving.source import find_served

ROOT = Path(__file__).resolve().parents[3]
PLANS: dict[str, dict[str, Any]] = {
    "slots of their own": {"n_parallel": 2, "kv_unified": False},
    "one pool, quantized": {"n_parallel": 3, "kv_unified": True, "type_k": "q8_0", "type_v": "q8_0"},
}


@pytest.fixture(params=PLANS, ids=lambda name: name.replace(" ", "-"))
def exported(request: pytest.FixtureRequest, tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> dict[str, Any]:
    """A plan of the bundled model, its unit and its .env file, and a key where the unit expects it."""
    plan_file = tmp_path / "plan.json"
    write_plan(plan_file, planned(tiny.model, sha256=tiny.receipt.model_file.sha256, **PLANS[request.param]))
    (tmp_path / "api-key").write_text("secret-key\n")
    target = Target(port=free_port(), api_key_file=str(tmp_path / "api-key"), quantplan=checker()[0],
                    program=toolchain.programs["llama-server"])  # fmt: skip
    told = deployment_of(find_served(tiny.folder, plan_file=plan_file), plan_file=plan_file, target=target)
    texts = {name: export(name, (told,)).files[0].text for name in ("systemd", "env")}
    return {"told": told, "folder": tmp_path, "check": command(texts["systemd"], "ExecStartPost",
                                                               credentials=str(tmp_path)), **texts}  # fmt: skip


def checked(words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=env)


def items(words: list[str]) -> dict[tuple[str, str], str]:
    told = json.loads(checked([*words, "--json"]).stdout)["data"]["items"]
    return {(item["name"], item["tier"]): item["status"] for item in told}


@pytest.mark.tools
def test_the_unit_serves_what_was_planned(exported: dict[str, Any]) -> None:
    text, port = exported["systemd"], exported["told"].target.port
    argv = command(text, "ExecStart", credentials=str(exported["folder"]))
    env = dict(word.split("=", 1) for word in value(text, "Environment").split())
    with running(argv, port, env=env):
        done = checked(exported["check"])
        assert done.returncode == 0, done.stdout + done.stderr
        found = items(exported["check"])
        assert found[("model sha256", "local")] == found[("environment", "local")] == "ok"
        assert chat(f"http://127.0.0.1:{port}", "Hello", max_tokens=4, key="secret-key")


@pytest.mark.tools
def test_the_check_of_the_unit_sees_another_context(exported: dict[str, Any]) -> None:
    port = exported["told"].target.port
    argv = command(exported["systemd"], "ExecStart", credentials=str(exported["folder"]))
    at = argv.index("--ctx-size") + 1
    argv[at] = str(int(argv[at]) * 2)
    with running(argv, port):
        assert checked(exported["check"]).returncode == 4


@pytest.mark.tools
def test_the_env_file_serves_what_was_planned(exported: dict[str, Any], toolchain: Toolchain) -> None:
    """Nothing on the command line: all of it comes from the variables, and agrees with the plan."""
    text, port = exported["env"], exported["told"].target.port
    assert words(text) == []
    with running(toolchain.programs["llama-server"], port, env=environment(text)):
        done = checked(exported["check"])
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.tools
def test_a_variable_changed_by_hand_is_seen(exported: dict[str, Any], toolchain: Toolchain) -> None:
    env = {**environment(exported["env"]), "LLAMA_ARG_CACHE_TYPE_K": "q4_0", "LLAMA_ARG_CACHE_TYPE_V": "q4_0"}
    with running(toolchain.programs["llama-server"], exported["told"].target.port, env=env):
        done = checked(exported["check"])
        assert done.returncode == 4
        found = items(exported["check"])
        assert found[("type_k", "local")] == found[("environment", "local")] == "mismatch"


def test_a_shell_reads_the_env_file_as_the_test_does(exported: dict[str, Any]) -> None:
    path = exported["folder"] / "x.env"
    path.write_text(exported["env"])
    code = "import json,os;print(json.dumps({k:v for k,v in os.environ.items() if k.startswith('LLAMA_')}))"
    shown = subprocess.run(["sh", "-c", f'set -a; . "{path}"; exec "{sys.executable}" -c "$0"', code], check=True,
                           capture_output=True, text=True, env={"PATH": os.environ["PATH"]})  # fmt: skip
    assert json.loads(shown.stdout) == environment(exported["env"])


@pytest.mark.tools
def test_the_check_waits_for_a_server_that_still_loads(exported: dict[str, Any]) -> None:
    """ExecStartPost runs as soon as the program does."""
    argv = command(exported["systemd"], "ExecStart", credentials=str(exported["folder"]))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    check = subprocess.Popen(exported["check"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with running(argv, exported["told"].target.port):
            said, _ = check.communicate(timeout=60)
            assert check.returncode == 0, said
    finally:
        check.kill()
        check.wait()
