"""Compose, Kubernetes and Docker, by their schemas and by what no schema sees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from serving.export.cases import CASES, Case, deployment
from serving.export.facts import settings_of
from serving.export.read_compose import document
from serving.export.read_kubernetes import documents

from quantplan.errors import BadValue, CannotExport, TargetTooOld
from quantplan.serving.export.deployment import EngineBuild
from quantplan.serving.export.exported import Exported
from quantplan.serving.export.formats import export

BY_NAME = {case.name: case for case in CASES}
IMAGE = f"ghcr.io/ggml-org/llama.cpp@sha256:{'ab' * 32}"
VALIDATOR = jsonschema.Draft7Validator  # the schema's own draft, by an address without the #
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def exported(name: str, folder: Path, case: str | Case, **target: Any) -> Exported:
    return export(name, (deployment(folder, BY_NAME[case] if isinstance(case, str) else case, **target),))


# ---- Compose


@pytest.fixture(scope="session")
def compose_schema(shared: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((shared / "schemas" / "compose-spec.json").read_text())
    return told


@every
@pytest.mark.parametrize("image", [None, IMAGE])
def test_compose_files_follow_the_schema(
    case: Case, image: str | None, compose_schema: dict[str, Any], tmp_path: Path
) -> None:
    told = yaml.safe_load(exported("compose", tmp_path, case, image=image).files[0].text)
    VALIDATOR(compose_schema).validate(told)
    server = told["services"]["llama-server"]
    assert ("image" in server) == (image is not None)
    assert server.get("image") == image


def test_the_schema_sees_a_wrong_word(compose_schema: dict[str, Any], tmp_path: Path) -> None:
    told = yaml.safe_load(exported("compose", tmp_path, "cpu").files[0].text)
    told["services"]["llama-server"]["memory_limit"] = "1g"
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR(compose_schema).validate(told)


@every
def test_compose_confines_what_it_starts(case: Case, tmp_path: Path) -> None:
    told = document(exported("compose", tmp_path, case).files)
    for service in told["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert all(volume["read_only"] for volume in service["volumes"])
    server = told["services"]["llama-server"]
    assert server["ports"] == ["127.0.0.1:8080:8080"]
    assert server["depends_on"] == {"artifact-check": {"condition": "service_completed_successfully"}}
    assert not {"version", "runtime"} & {*told, *server}
    mounted = {volume["target"] for volume in server["volumes"]}
    settings = settings_of(server["command"])
    for flag in ("model", "mmproj", "model-draft"):
        if flag in settings:
            assert any(settings[flag] == at or settings[flag].startswith(f"{at}/") for at in mounted)


def test_compose_gives_the_plans_cards_and_counts_them_from_0(tmp_path: Path) -> None:
    server = document(exported("compose", tmp_path, "the second card").files)["services"]["llama-server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}
    assert settings_of(server["command"])["device"] == "CUDA0"
    assert "-DGGML_CUDA=ON" in server["build"]["dockerfile_inline"]
    both = document(exported("compose", tmp_path / "both", "two cards").files)["services"]["llama-server"]
    assert both["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0", "1"]
    assert settings_of(both["command"])["device"] == "CUDA0,CUDA1"


def test_compose_without_cards_asks_for_none(tmp_path: Path) -> None:
    server = document(exported("compose", tmp_path, "cpu").files)["services"]["llama-server"]
    assert not {"deploy", "devices", "gpus"} & set(server)
    assert "CUDA=ON" not in server["build"]["dockerfile_inline"]


def test_compose_pins_and_locks_as_planned(tmp_path: Path) -> None:
    pinned = document(exported("compose", tmp_path, "pinned threads").files)["services"]["llama-server"]
    assert (pinned["cpuset"], pinned["cpus"]) == ("0-7", 8.0)
    locked = document(exported("compose", tmp_path / "l", "locked").files)["services"]["llama-server"]
    assert locked["ulimits"]["memlock"] == -1


def test_an_old_compose_is_refused(tmp_path: Path) -> None:
    told = deployment(tmp_path, BY_NAME["cpu"])
    with pytest.raises(TargetTooOld, match=r"Docker Compose 2\.20\.0 is too old: content of configs needs 2\.23\.1"):
        export("compose", (told,), version="2.20.0")
    assert export("compose", (told,), version="v2.24.5").files


# ---- Kubernetes


@every
def test_manifests_follow_the_schema(case: Case, tmp_path: Path) -> None:
    for told in yaml.safe_load_all(exported("kubernetes", tmp_path, case, image=IMAGE).files[0].text):
        kubernetes_validate.validate(told, kubernetes_validate.latest_version(), strict=True)


def test_validation_sees_a_wrong_word(tmp_path: Path) -> None:
    told = documents(exported("kubernetes", tmp_path, "cpu").files)["Deployment"]
    told["spec"]["template"]["spec"]["containers"][0]["memory"] = "1Gi"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(told, kubernetes_validate.latest_version(), strict=True)


@every
def test_manifests_keep_the_rules_that_no_schema_has(case: Case, tmp_path: Path) -> None:
    found = documents(exported("kubernetes", tmp_path, case, image=IMAGE).files)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    for container in (*pod["initContainers"], *pod["containers"]):
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert container["image"] == IMAGE
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        assert all(str(value).isdecimal() for key, value in limits.items() if "/" in key)
    (server,) = pod["containers"]
    settings = settings_of(server["args"])
    threads = max(int(settings["threads"]), int(settings["threads-batch"]))
    assert server["resources"]["limits"]["cpu"] == str(threads)
    assert "cpu-range" not in settings
    for flag in ("model", "mmproj", "model-draft"):
        assert settings.get(flag, "/models/").startswith("/models/")
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 600
    assert server["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "tcpSocket" in server["livenessProbe"]
    assert "httpGet" not in server["livenessProbe"]
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (found["Deployment"]["spec"]["selector"]["matchLabels"], found["Service"]["spec"]["selector"],
                     found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
                     found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]):  # fmt: skip
        assert selector == labels
    assert found["NetworkPolicy"]["spec"]["egress"] == []
    assert "Secret" not in found
    names = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", one["metadata"]["name"]) for one in found.values())


def test_cards_are_asked_for_by_count(tmp_path: Path) -> None:
    def limits(case: str) -> dict[str, str]:
        found = documents(exported("kubernetes", tmp_path / case, case).files)
        told: dict[str, str] = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        return told

    assert limits("two cards")["nvidia.com/gpu"] == "2"
    assert limits("the second card")["nvidia.com/gpu"] == "1"
    assert not any("gpu" in key for key in limits("cpu"))


def test_an_image_without_a_digest_is_refused_and_none_is_a_placeholder(tmp_path: Path) -> None:
    for index, image in enumerate(("llama:latest", "llama@sha256:12", "llama:server@sha256:" + "g" * 64)):
        with pytest.raises(BadValue, match="without its digest"):
            exported("kubernetes", tmp_path / str(index), "cpu", image=image)
    made = exported("kubernetes", tmp_path / "none", "cpu")
    assert "registry.invalid/" in made.files[0].text
    assert any("placeholder" in note for note in made.notes)


def test_what_a_pod_cannot_have_is_said(tmp_path: Path) -> None:
    assert any("CPUs 0-7" in note for note in exported("kubernetes", tmp_path, "pinned threads").notes)
    assert any("locked memory" in note for note in exported("kubernetes", tmp_path / "l", "locked").notes)
    assert any("MiB free" in note for note in exported("kubernetes", tmp_path / "g", "partial offload").notes)


def test_no_device_plugin_gives_vulkan(tmp_path: Path) -> None:
    from serving.export.cases import ONE, device

    case = Case(name="vulkan", plan={"memory": (ONE[0], device("Vulkan0", 6000)), "n_gpu_layers": 33})
    with pytest.raises(CannotExport, match="no device plugin gives Vulkan0"):
        exported("kubernetes", tmp_path, case)


def test_an_old_cluster_is_refused(tmp_path: Path) -> None:
    told = deployment(tmp_path, BY_NAME["cpu"])
    with pytest.raises(TargetTooOld, match=r"Kubernetes v1\.19\.4 is too old: .* needs 1\.21"):
        export("kubernetes", (told,), version="v1.19.4")
    assert export("kubernetes", (told,), version="v1.33.1+k3s1").files


# ---- Dockerfile


def runs(text: str) -> list[str]:
    """The shell commands of a Dockerfile."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN ")]


@every
def test_a_dockerfile_builds_the_commit_and_drops_root(case: Case, tmp_path: Path) -> None:
    text = exported("dockerfile", tmp_path, case).files[0].text
    assert "0c1e57098bba43ac29e6e3b677cdceebdd22334f" in text
    assert [line for line in text.splitlines() if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert text.count("\nFROM ") == 3
    on_cards = "CUDA0" in str(case.plan) or "CUDA1" in str(case.plan)
    assert ("-DGGML_CUDA=ON" in text) == on_cards
    for command in runs(text):
        subprocess.run(["sh", "-n", "-c", command], check=True, capture_output=True)


def test_another_commit_is_checked_out_by_what_is_known_of_it(tmp_path: Path) -> None:
    told = deployment(tmp_path, BY_NAME["cpu"])
    other = replace(told, engine=EngineBuild(commit="abc1234", number=None))
    (fetch,) = [command for command in runs(export("dockerfile", (other,)).files[0].text) if "git rev-parse" in command]
    assert "git clone" in fetch
    assert "git checkout --quiet abc1234" in fetch
    assert "in abc1234*) ;; *) exit 1 ;; esac" in fetch
    assert "LLAMA_BUILD_NUMBER" not in export("dockerfile", (other,)).files[0].text


def test_cuda_architectures_are_those_that_are_named(tmp_path: Path) -> None:
    made = exported("dockerfile", tmp_path, "partial offload", cuda_architectures="80;90")
    assert "'-DCMAKE_CUDA_ARCHITECTURES=80;90'" in made.files[0].text
    assert not any("no CUDA architecture" in note for note in made.notes)
    unnamed = exported("dockerfile", tmp_path / "unnamed", "partial offload")
    assert any("no CUDA architecture" in note for note in unnamed.notes)


def test_the_start_of_the_image_checks_the_hash(tmp_path: Path) -> None:
    """Its own commands, run here with the container's paths moved: right files start it, a changed one does not."""
    text = exported("dockerfile", tmp_path, "shards").files[0].text
    app, models = tmp_path / "app", tmp_path / "models"
    app.mkdir()
    shutil.copytree(tmp_path / "artifacts" / "m-Q4_K_M", models)
    (prepare,) = [command for command in runs(text) if "artifact.sha256" in command]
    moved = prepare.replace("/app/", f"{app}/").replace("/models/", f"{models}/")
    subprocess.run(["sh", "-c", moved], check=True)
    start = [str(app / "start"), "echo", "started"]
    assert subprocess.run(start, check=True, capture_output=True, text=True).stdout == "started\n"
    changed = max(models.glob("*.gguf"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    refused = subprocess.run(start, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "started" not in refused.stdout
    assert changed.name in refused.stdout + refused.stderr


def test_a_card_without_a_base_image_is_refused(tmp_path: Path) -> None:
    from serving.export.cases import ONE, device

    case = Case(name="rocm", plan={"memory": (ONE[0], device("ROCm0", 6000)), "n_gpu_layers": 33})
    for name in ("dockerfile", "compose"):
        with pytest.raises(CannotExport, match="no base image is known here for rocm"):
            exported(name, tmp_path / name, case)
    given = yaml.safe_load(exported("compose", tmp_path / "own", case, image=IMAGE).files[0].text)
    assert given["services"]["llama-server"]["devices"] == ["/dev/kfd", "/dev/dri"]
