"""`quantplan pull`: whole processes against a hub on loopback, stores of other programs, and local files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from loopback_hub import LoopbackHub

from quantplan.llama import commands
from quantplan.llama.process import run_tool
from quantplan.llama.toolchain import converter_script
from quantplan.places import cache_folder, data_file

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.tools, pytest.mark.build]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, toolchain: Any) -> Path:
    """The bundled model in four presets, and split in three."""
    folder = tmp_path_factory.mktemp("gguf")
    script = converter_script(toolchain)
    assert script is not None
    argv = commands.convert(
        (sys.executable,), script, data_file("bundled", "quantplan-tiny"), folder / "tiny-BF16.gguf"
    )
    run_tool((*argv, "--model-name", "tiny"), step="convert")
    for quant in ("Q8_0", "Q4_K_M", "Q2_K"):
        program = toolchain.programs["llama-quantize"]
        target = folder / f"tiny-{quant}.gguf"
        run_tool(commands.quantize(program, folder / "tiny-BF16.gguf", target, quant, n_threads=2), step=quant)
    split = (*toolchain.programs["llama-gguf-split"], "--split", "--split-max-tensors", "16")
    run_tool((*split, str(folder / "tiny-Q8_0.gguf"), str(folder / "split-Q8_0")), step="split")
    return folder


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a cache of its own that borrows the toolchain of this host, and a short text."""
    own, shared = tmp_path / "cache", cache_folder()
    own.mkdir()
    for name in ("toolchains", "self-tests"):
        if (shared / name).is_dir():
            (own / name).symlink_to(shared / name)
    (tmp_path / "text.txt").write_bytes(data_file("bundled", "eval", "prose.txt").read_bytes())
    return tmp_path


def pull(
    place: Path, *words: str | Path, hub: LoopbackHub | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    home = place / "home"
    own = {
        **os.environ, "QUANTPLAN_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT), "HOME": str(home),
        "HF_HOME": str(home / "hf"), "HF_TOKEN": "", "OLLAMA_MODELS": str(home / "ollama"),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", **env,
    }  # fmt: skip
    for name in ("HF_HUB_CACHE", "LMSTUDIO_MODELS"):
        own.pop(name, None)
    argv = [sys.executable, "-m", "quantplan", "pull", *map(str, words)]
    return subprocess.run(argv, env=own, cwd=place, capture_output=True, text=True, check=False, timeout=300)


def told(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    assert done.returncode == status, done.stdout + done.stderr
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def repository(models: Path, *quants: str) -> dict[str, bytes]:
    return {f"tiny-{quant}.gguf": (models / f"tiny-{quant}.gguf").read_bytes() for quant in quants}


SHORT = ("--text", "t=text.txt", "--chunks", "20", "--json")


def test_the_planner_chooses_and_the_repository_judges(hub: LoopbackHub, models: Path, place: Path) -> None:
    commit = hub.add("org/tiny-GGUF", repository(models, "BF16", "Q8_0", "Q4_K_M", "Q2_K"), licence="mit").commit
    found = told(pull(place, "org/tiny-GGUF", "--reference", "none", "--json", hub=hub))
    assert found["label"] in ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
    assert "the planner's choice for this host" in found["chosen"]
    assert found["verdict"] == "unmeasured"
    assert found["reason"] == "no reference was asked for, so nothing was measured"
    hub.log.clear()
    found = told(pull(place, "org/tiny-GGUF", "--quant", "Q4_K_M", *SHORT, hub=hub))
    assert found["verdict"] == "pass"
    assert "against org/tiny-GGUF/tiny-BF16.gguf" in found["reason"]
    assert (found["n_unlike"], found["tensor_bytes"]) == (0, found["promised_bytes"])
    folder = place / found["folder"]
    receipt = json.loads((folder / "artifact.json").read_text())
    jsonschema.validate(receipt, json.loads(data_file("schemas", "artifact-1.schema.json").read_text()))
    assert (receipt["source"]["repo"], receipt["source"]["revision"]) == ("org/tiny-GGUF", commit)
    assert (folder / "tiny-Q4_K_M.gguf").stat().st_nlink == 2
    assert {path.name.split("-")[0] for path in (folder / "results").iterdir()} == {"gate", "scan"}
    assert json.loads((folder / "plan.json").read_text())["quant"] == "Q4_K_M"
    hub.log.clear()
    again = told(pull(place, "org/tiny-GGUF", "--quant", "Q4_K_M", *SHORT, hub=hub))
    assert (again["fresh"], again["verdict"]) == (False, found["verdict"])
    assert not any("/cdn/" in entry.path for entry in hub.log)


def test_without_a_reference_it_is_unmeasured_and_not_served(hub: LoopbackHub, models: Path, place: Path) -> None:
    hub.add("org/tiny-GGUF", repository(models, "Q4_K_M"))
    done = pull(place, "org/tiny-GGUF", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "artifacts/tiny-Q4_K_M  UNMEASURED\n" in done.stdout
    assert "no reference: its repository has no BF16 or Q8_0 file, and no base model is named" in done.stdout
    argv = [sys.executable, "-m", "quantplan", "serve", "artifacts/tiny-Q4_K_M", "--port", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    served = subprocess.run(argv, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert served.returncode == 4
    assert "its newest gate result is unmeasured, not pass" in served.stderr


def test_a_base_model_is_built_as_reference(hub: LoopbackHub, models: Path, place: Path) -> None:
    base = {path.name: path.read_bytes() for path in data_file("bundled", "quantplan-tiny").iterdir()}
    hub.add("org/tiny", base)
    hub.add("other/tiny-GGUF", repository(models, "Q2_K"), base_model="org/tiny")
    found = told(pull(place, "other/tiny-GGUF", *SHORT, hub=hub), 4)
    assert found["verdict"] == "fail"
    assert "against org/tiny, converted here" in found["reason"]
    kept = list((place / "cache" / "references").iterdir())
    assert [path.suffix for path in kept] == [".gguf"]


def test_a_q8_0_is_a_reference_too(hub: LoopbackHub, models: Path, place: Path) -> None:
    hub.add("org/tiny-GGUF", repository(models, "Q8_0", "Q2_K"))
    found = told(pull(place, "org/tiny-GGUF", "--quant", "Q2_K", *SHORT, hub=hub), 4)
    assert "against org/tiny-GGUF/tiny-Q8_0.gguf, itself quantized: its own damage is not counted" in found["reason"]


def test_a_split_model_is_whole(hub: LoopbackHub, models: Path, place: Path) -> None:
    shards = sorted(models.glob("split-Q8_0-*.gguf"))
    hub.add("org/split-GGUF", {f"Q8_0/{path.name}": path.read_bytes() for path in shards})
    found = told(pull(place, "org/split-GGUF", "--reference", "none", "--json", hub=hub))
    assert [one["name"] for one in found["files"]] == [path.name for path in shards]
    assert found["n_unlike"] == 0
    missing = place / shards[0].name
    missing.write_bytes(shards[0].read_bytes())
    done = pull(place, missing)
    assert done.returncode == 1
    assert "is missing: the model is split, and this is one of its files" in done.stderr


def test_a_label_that_promises_more(hub: LoopbackHub, models: Path, place: Path) -> None:
    """A Q2_K that calls itself Q4_K_M."""
    hub.add("org/liar-GGUF", {"liar-Q4_K_M.gguf": (models / "tiny-Q2_K.gguf").read_bytes()})
    done = pull(place, "org/liar-GGUF", "--reference", "none", hub=hub)
    assert done.returncode == 0
    assert "tensors have fewer bits than Q4_K_M promises" in done.stdout
    assert "its name says Q4_K_M, its general.file_type says Q2_K" in done.stdout


@pytest.mark.parametrize("cut", ["truncated", "overlap", "garbage"])
def test_an_unsound_file_is_not_linked(cut: str, models: Path, place: Path) -> None:
    data = bytearray((models / "tiny-Q4_K_M.gguf").read_bytes())
    path = place / "bad-Q4_K_M.gguf"
    if cut == "truncated":
        data = data[:-5000]
    elif cut == "overlap":
        at = data.find(b"blk.0.attn_k.weight") + len("blk.0.attn_k.weight") + 4 + 16 + 4
        data[at : at + 8] = bytes(8)
    else:
        data[:4] = b"PK\x03\x04"
    path.write_bytes(bytes(data))
    done = pull(place, path, "--json")
    assert done.returncode == 4 if cut != "garbage" else done.returncode in (1, 4), done.stderr
    says = {"truncated": "is it truncated?", "overlap": "overlaps the tensor before", "garbage": "not a GGUF file"}
    assert says[cut] in done.stderr
    assert not (place / "artifacts").exists()


def ollama(place: Path, blob: bytes, *, name: str = "library/tiny", tag: str = "latest") -> Path:
    folder = place / "home" / "ollama"
    digest = hashlib.sha256(blob).hexdigest()
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    path = folder / "blobs" / f"sha256-{digest}"
    path.write_bytes(blob)
    manifest = folder / "manifests" / "registry.ollama.ai" / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(blob)}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    return path


def test_what_ollama_holds_is_linked(models: Path, place: Path) -> None:
    blob = ollama(place, (models / "tiny-Q4_K_M.gguf").read_bytes())
    held = told(pull(place, "--held", "--json"))
    assert [one["model"] for one in held["models"]] == ["ollama:tiny:latest"]
    found = told(pull(place, "ollama:tiny", *SHORT, "--reference", str(models / "tiny-BF16.gguf")), 0)
    assert found["label"] == "Q4_K_M"
    assert found["linked"][0]["kind"] == "hardlink"
    artifact = place / found["folder"] / found["files"][0]["name"]
    assert artifact.samefile(blob)
    assert artifact.suffix == ".gguf"
    done = pull(place, "ollama:nosuch")
    assert "Error: no model called 'ollama:nosuch'" in done.stderr
    assert "ollama:tiny:latest" in done.stderr


def test_a_blob_with_other_content_than_its_name_says(models: Path, place: Path) -> None:
    blob = ollama(place, (models / "tiny-Q4_K_M.gguf").read_bytes())
    data = bytearray(blob.read_bytes())
    data[-100] ^= 1
    blob.write_bytes(bytes(data))
    done = pull(place, "ollama:tiny", "--reference", "none")
    assert done.returncode == 4
    assert ", ollama says " in done.stderr


def test_what_lm_studio_and_the_hugging_face_cache_hold(models: Path, place: Path) -> None:
    studio = place / "home" / ".lmstudio" / "models" / "org" / "tiny-GGUF"
    studio.mkdir(parents=True)
    (studio / "tiny-Q4_K_M.gguf").write_bytes((models / "tiny-Q4_K_M.gguf").read_bytes())
    client = place / "home" / "hf" / "hub" / "models--org--tiny-GGUF"
    content = (models / "tiny-Q8_0.gguf").read_bytes()
    blob = client / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = client / "snapshots" / ("a" * 40)
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(content)
    (snapshot / "tiny-Q8_0.gguf").symlink_to(blob)
    names = [one["model"] for one in told(pull(place, "--held", "--json"))["models"]]
    assert names == ["lmstudio:org/tiny-GGUF/tiny-Q4_K_M.gguf", "hf:org/tiny-GGUF/tiny-Q8_0.gguf"]
    for model, path in (("lmstudio:org/tiny-GGUF", studio / "tiny-Q4_K_M.gguf"), ("hf:org/tiny-GGUF:Q8_0", blob)):
        found = told(pull(place, model, "--reference", "none", "--json"))
        assert (place / found["folder"] / found["files"][0]["name"]).samefile(path)


def test_another_filesystem_gets_a_symbolic_link(tmp_path: Path) -> None:
    from quantplan.pipeline.link import link_file

    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one filesystem here")
    source = shm / f"quantplan-test-{os.getpid()}"
    source.write_bytes(b"x")
    try:
        linked = link_file(source, tmp_path / "x")
        assert (linked.kind, linked.why) == ("symlink", "it lies on another filesystem")
        assert (tmp_path / "x").read_bytes() == b"x"
    finally:
        source.unlink()


def test_repositories_without_what_is_asked(hub: LoopbackHub, models: Path, place: Path) -> None:
    hub.add("org/checkpoint", {"config.json": b"{}", "model.safetensors": b"x"})
    done = pull(place, "org/checkpoint", hub=hub)
    assert done.stderr == (
        "Error: org/checkpoint: it holds no GGUF model\nHint: quantplan build org/checkpoint --quant Q4_K_M\n"
    )
    hub.add("org/tiny-GGUF", repository(models, "Q4_K_M", "Q8_0"))
    done = pull(place, "org/tiny-GGUF", "--quant", "Q5_K_M", hub=hub)
    assert "no file 'Q5_K_M'; it has Q4_K_M, Q8_0" in done.stderr


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ({"flip_at": 1_000_000}, 1, "and the hub says"),
        ({"status": 403}, 1, "answered 403 (at the address that the hub redirects to)"),
    ],
)
def test_faults_that_stay_leave_no_artifact(
    fault: dict[str, Any], status: int, says: str, hub: LoopbackHub, models: Path, place: Path
) -> None:
    content = repository(models, "Q4_K_M")
    hub.add("org/tiny-GGUF", content)
    sha = hashlib.sha256(content["tiny-Q4_K_M.gguf"]).hexdigest()
    assert pull(place, "org/tiny-GGUF", "--quant", "Q4_K_M", "--reference", "none", hub=hub).returncode == 0
    for path in (place / "cache" / "downloads").rglob("*.gguf"):
        path.unlink()
    hub.fail(f"/cdn/{sha}", **fault)
    done = pull(place, "org/tiny-GGUF", "--quant", "Q4_K_M", "--output", "other", hub=hub)
    assert done.returncode == status
    assert says in done.stderr
    assert not (place / "other").exists()
