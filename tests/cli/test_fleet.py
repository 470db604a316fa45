"""`quantplan fleet`: whole processes, a hub on loopback, the real tools; exports, and what they say, run here."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import refused, run
from loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import fleet_bars as bars  # noqa: E402


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.slow
def test_six_builds_with_two_jobs_share_and_keep_their_promise(tmp_path: Path, toolchain: object) -> None:
    """Two models of a hub in three presets; killed with SIGKILL once both are converted, and run again to the end."""
    place = tmp_path / "run"
    place.mkdir()
    with LoopbackHub() as hub:
        bars.prepare(place, hub, chunks=2)
        promised = bars.check(place, hub)
        assert (promised["jobs"], [unit["quants"] for unit in promised["builds"]]) == (2, [list(bars.QUANTS)] * 2)
        with bars.Watcher(place) as disk:
            first = bars.run(place, hub, kill_when=lambda: bars.all_converted(place))
            assert first.ended == -9
            assert bars.conversions(place) == 2
            last = bars.run(place, hub)
        assert last.ended in (0, 5), last.said
        assert (bars.conversions(place), bars.downloads(hub)) == (2, 2)
    assert max(first.most_builds, last.most_builds) == 2
    assert disk.peak_bytes <= promised["disk_bytes"] + (2 << 20)
    assert max(first.memory_bytes, last.memory_bytes) <= promised["memory_bytes"]
    told = {one["id"]: one for one in last.told["data"]["artifacts"]}
    assert set(told) == {f"{name}-{quant}" for name in ("One", "Two") for quant in bars.QUANTS}
    for name in told:
        assert (place / "artifacts" / name / "artifact.json").is_file()
        assert told[name]["verdict"] in ("pass", "inconclusive")
    found = bars.hashes(place)
    assert len(found) == 6  # and no intermediate is left
    assert not list((place / "artifacts" / ".work").glob("*/*.gguf"))


def test_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text("[matrix]\nmodels = ['quantplan-tiny']\nquants = ['Q4_K_M']\nquant = 1\n")
    done = run("fleet", "run", "fleet.toml", cwd=tmp_path)
    refused(done, 2, "fleet.toml: matrix.quant: is no key that is known here; near: quants")
    with LoopbackHub() as hub:
        hub.add("org/Gated", {"config.json": b"{}"}, gated=True)
        text = "[matrix]\nmodels = ['org/None', 'org/Gated', 'quantplan-tiny']\nquants = ['Q4_K_M']\n"
        (tmp_path / "fleet.toml").write_text(text)
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "hf")}
        for words in (("run", "fleet.toml"), ("check", "fleet.toml"), ("export", "github", "fleet.toml")):
            done = run("fleet", *words, cwd=tmp_path, **env)
            refused(done, 1, "fleet.toml: 2 build(s) cannot be made, and nothing was begun:",
                    "None: the hub has no repository 'org/None'", "Gated: org/Gated: this")  # fmt: skip
        assert not (tmp_path / "artifacts").exists()
        assert {line.method for line in hub.log} <= {"GET", "HEAD"}


@pytest.mark.tools
@pytest.mark.build
def test_too_little_disk_or_memory_is_said_before_any_work(tmp_path: Path, toolchain: object) -> None:
    one = "[matrix]\nmodels = ['quantplan-tiny']\nquants = ['Q4_K_M']\n"
    (tmp_path / "fleet.toml").write_text(f"max_disk = '5MB'\n{one}")
    refused(run("fleet", "run", "fleet.toml", cwd=tmp_path), 3,
            "fleet.toml: one build after the other needs", "4 MiB are allowed and free")  # fmt: skip
    (tmp_path / "fleet.toml").write_text(f"max_memory = '50MB'\n{one}")
    refused(run("fleet", "run", "fleet.toml", cwd=tmp_path), 3,
            "the build of quantplan-tiny needs", "47 MiB are allowed and free")  # fmt: skip
    assert not (tmp_path / "artifacts").exists()


FLEET = """
keep = true
[defaults]
texts = ["t=texts/t.txt"]
chunks = 2
[matrix]
models = ["quantplan-tiny"]
quants = ["{quant}"]
"""
IMAGE = ("--image", "registry.example/quantplan:1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build file with its text, and a quantplan on PATH."""
    place = tmp_path_factory.mktemp("fleet")
    (place / "texts").mkdir()
    shutil.copy(ROOT / "data" / "bundled" / "eval" / "chat.txt", place / "texts" / "t.txt")
    (place / "bin").mkdir()
    program = place / "bin" / "quantplan"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m quantplan "$@"\n')
    program.chmod(0o755)
    return place


def exported(folder: Path, engine: str, quant: str = "Q4_K_M", *words: str, text: str = FLEET) -> list[Any]:
    """The documents of an export, read back."""
    (folder / "fleet.toml").write_text(text.format(quant=quant))
    done = run("fleet", "export", engine, "fleet.toml", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / f"{engine}.yaml").write_text(done.stdout)
    return list(yaml.safe_load_all(done.stdout))


def needed(module: str) -> Any:
    """A package of the extra `dev`; in CI it must be there."""
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


def executed(folder: Path, argv: list[str], env: Mapping[str, str] = os.environ) -> None:
    """One build's own command, in a folder that stands for the runner's or the volume's."""
    own = {**env, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "QUANTPLAN_STATE": str(folder / "state")}
    done = subprocess.run(argv, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 5), done.stdout + done.stderr  # two chunks may be too few to tell


def stages(folder: Path) -> str:
    (folder / "m.toml").write_text("")
    return """
jobs = 3
[[builds]]
name = "a"
model = "quantplan-tiny"
quants = ["Q8_0", "Q4_K_M"]
gates = ["standard"]
push = "me/{{name}}"
[[builds]]
model = "quantplan-tiny"
quants = ["Q5_K_M"]
texts = ["t=texts/t.txt"]
needs = ["a"]
"""


def test_the_workflow_is_valid(folder: Path) -> None:
    exported(folder, "github", text=stages(folder))
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", "github.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if shutil.which("actionlint"):
        done = subprocess.run(["actionlint", "github.yaml"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    told = yaml.safe_load((folder / "github.yaml").read_text())
    assert list(told["jobs"]) == ["stage-1", "stage-2"]
    assert told["jobs"]["stage-2"]["needs"] == ["stage-1"]
    matrix = told["jobs"]["stage-1"]["strategy"]
    assert (matrix["max-parallel"], matrix["fail-fast"]) == (3, False)
    lines = matrix["matrix"]["include"][0]["commands"].splitlines()
    assert [line.split()[1] for line in lines] == ["build", "gate", "gate", "push", "push"]
    for job in told["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "an expression inside a script can be injected into"


def test_the_jobs_are_valid(folder: Path) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    found = exported(folder, "kubernetes", "Q4_K_M", *IMAGE, "--storage", "10Gi", "--namespace", "ml",
                     text=stages(folder))  # fmt: skip
    assert [one["kind"] for one in found] == ["ConfigMap", "PersistentVolumeClaim", "Job", "Job"]
    for document in found:
        for version in ("1.31", "1.34"):
            kubernetes_validate.validate(document, version, strict=True)
    first, second = found[2:]
    waits = second["spec"]["template"]["spec"]["initContainers"][0]["args"][0]
    assert "[ -f /artifacts/quantplan-tiny-Q8_0/artifact.json ] && [ -f /artifacts/quantplan-tiny-Q4_K_M/" in waits
    memory = first["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]
    assert 100 < int(memory.removesuffix("Mi")) < 2000


def test_the_argo_workflow_is_valid(folder: Path) -> None:
    """Read by the models that Argo's own OpenAPI description gives: what they do not know would be lost on the way."""
    models = needed("hera.workflows.models")
    told = exported(folder, "argo", "Q4_K_M", *IMAGE, text=stages(folder))[-1]
    again = models.Workflow.model_validate(told).model_dump(by_alias=True, exclude_none=True, mode="json")
    assert again == told
    spec = told["spec"]
    names = {template["name"] for template in spec["templates"]}
    tasks = spec["templates"][0]["dag"]["tasks"]
    assert spec["entrypoint"] in names
    assert {task["template"] for task in tasks} <= names
    assert [task.get("dependencies") for task in tasks] == [None, ["quantplan-tiny"]]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for template in spec["templates"][1:]:
        assert {mount["name"] for mount in template["container"]["volumeMounts"]} <= volumes
        assert "{{" not in json.dumps(template)  # nothing that Argo would fill in


def test_what_lies_on_this_machine_alone_is_not_exported(folder: Path) -> None:
    shutil.copytree(ROOT / "data" / "bundled" / "quantplan-tiny", folder / "own-model", dirs_exist_ok=True)
    text = "[matrix]\nmodels = ['own-model']\nquants = ['Q8_0']\n"
    (folder / "own.toml").write_text(text)
    done = run("fleet", "export", "argo", "own.toml", "--no-check", *IMAGE, cwd=folder)
    refused(done, 2, "own-model is a folder of this machine: name one of the hub")
    done = run("fleet", "export", "github", "own.toml", "--no-check", cwd=folder)
    assert "quantplan build ./own-model --quant Q8_0" in done.stdout
    done = run("fleet", "export", "argo", "own.toml", "--no-check", cwd=folder)
    refused(done, 2, "name the container with --image")


@pytest.mark.tools
@pytest.mark.build
@pytest.mark.slow
def test_one_job_of_each_is_run_by_its_own_commands(folder: Path, toolchain: object) -> None:
    """Three engines into one folder, as into one volume: each adds its preset, and the conversion is made once."""
    workflow = exported(folder, "github", "Q8_0")[0]
    job = workflow["jobs"]["stage-1"]
    build = next(step for step in job["steps"] if step.get("name") == "Build")
    commands = job["strategy"]["matrix"]["include"][0]["commands"]
    assert build["env"]["COMMANDS"] == "${{ matrix.commands }}"
    executed(folder, ["bash", "-eo", "pipefail", "-c", build["run"]], {**os.environ, "COMMANDS": commands})
    for engine, quant in (("argo", "Q5_K_M"), ("kubernetes", "Q4_K_M")):
        documents = exported(folder, engine, quant, *IMAGE)
        files, last = documents[0], documents[-1]
        mounted = folder / f"{engine}-files"
        mounted.mkdir()
        for name, content in files["data"].items():
            (mounted / name).write_text(content)
        container = (last["spec"]["templates"][-1]["container"] if engine == "argo"
                     else last["spec"]["template"]["spec"]["containers"][0])  # fmt: skip
        argv = [*container["command"], *container["args"]]
        executed(folder, [word.replace("/artifacts", str(folder / "artifacts")).replace("/fleet/", f"{mounted}/")
                          for word in argv])  # fmt: skip
    receipts = [json.loads(path.read_text()) for path in sorted((folder / "artifacts").glob("*/artifact.json"))]
    assert [receipt["quant"] for receipt in receipts] == ["Q4_K_M", "Q5_K_M", "Q8_0"]
    converted = {json.dumps(step) for receipt in receipts for step in receipt["steps"] if step["name"] == "convert"}
    assert len(converted) == 1  # the same step, with the time it took
