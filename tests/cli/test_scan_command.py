"""`quantplan scan`, whole: text, JSON, SARIF, exit status; a repository of a hub; and no command steers a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import refused, run
from hostile_gguf import MODEL_DATA, MODEL_KEYS, MODEL_TENSORS, gguf, model, string, template
from hostile_sources import gadget, torch_zip
from hostile_templates import PLAIN
from loopback_hub import Hole, LoopbackHub
from sarif_pydantic import Sarif

STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def test_text(tmp_path: Path, cache: str) -> None:
    (tmp_path / "m.gguf").write_bytes(template("{{ messages[-1].content }}\n{{ cycler.__init__ }}"))
    done = run("scan", "m.gguf", "--base", "none", "--no-data", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert done.returncode == 4
    assert done.stdout.splitlines() == [
        "m.gguf:2: error: reaches for .__init__: Python's internals, not a message (tokenizer.chat_template) "
        "[template-escape]",
        "m.gguf:2: warning: uses cycler: attacks begin there, chat templates don't (tokenizer.chat_template) "
        "[template-global]",
        "m.gguf: 1 file: 1 error, 1 warning; the tensors' numbers were not looked at",
    ]


def test_json_and_sarif(tmp_path: Path, cache: str) -> None:
    (tmp_path / "m.gguf").write_bytes(model(data=MODEL_DATA - 8))
    done = run("scan", "m.gguf", "--json", "--sarif", "s.json", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert done.returncode == 4
    told = json.loads(done.stdout)
    assert (told["schema"], told["ok"]) == ("quantplan/scan/1", False)
    assert told["data"]["kind"] == "scan"
    assert told["data"]["counts"] == {"error": 1, "warning": 0, "note": 0}
    (finding,) = told["data"]["findings"]
    assert (finding["rule"], finding["where"]) == ("scan/gguf-data-end", "tensor 'blk.0.attn_q.weight'")
    sarif = json.loads((tmp_path / "s.json").read_text())
    Sarif.model_validate(sarif)
    (result,) = sarif["runs"][0]["results"]
    assert result["ruleId"] == "scan/gguf-data-end"
    assert result["level"] == "error"
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "m.gguf"
    assert location["physicalLocation"]["region"]["byteOffset"] == finding["offset"] > 0
    assert location["logicalLocations"] == [{"fullyQualifiedName": "tensor 'blk.0.attn_q.weight'"}]


def test_a_sound_file(tmp_path: Path, cache: str) -> None:
    (tmp_path / "m.gguf").write_bytes(template(PLAIN))
    done = run("scan", "m.gguf", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "m.gguf: 1 file: nothing found\n", "")


def test_what_is_not_there(tmp_path: Path, cache: str) -> None:
    refused(run("scan", "no-such.gguf", cwd=tmp_path, QUANTPLAN_CACHE=cache), 1, "no such file")
    refused(run("scan", "./nothing", cwd=tmp_path, QUANTPLAN_CACHE=cache), 1, "no such file")


def test_a_repository_by_ranges(tmp_path: Path) -> None:
    head = gguf(*MODEL_KEYS, string("tokenizer.chat_template", PLAIN), tensors=MODEL_TENSORS)
    pickled = torch_zip(gadget("os", "system"), **{"archive/data/0": bytes(3 * 2**20)})
    with LoopbackHub() as hub:
        hub.add(
            "fern/base", {"config.json": b"{}", "chat_template.jinja": PLAIN.replace("<|end|>", "<|eot|>").encode()}
        )
        hub.add("fern/fern-GGUF", {
            "fern-Q4_K_M.gguf": head + bytes(MODEL_DATA), "fern-Q8_0.gguf": Hole(head, len(head) + MODEL_DATA),
            "pytorch_model.bin": pickled, "../../.bashrc": b"x", "README.md": b"# Fern",
        }, base_model="fern/base")  # fmt: skip
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "QUANTPLAN_CACHE": str(tmp_path / "cache")}
        done = run("scan", "fern/fern-GGUF", "--json", cwd=tmp_path, **env)
        sent = sum(entry.n_sent for entry in hub.log)
        again = run("scan", "fern/fern-GGUF:Q8_0", "--base", "none", "--json", cwd=tmp_path, **env)
    data = json.loads(done.stdout)["data"]
    assert done.returncode == 4
    found = {(one["rule"], one["file"]) for one in data["findings"]}
    assert ("scan/pickle-gadget", "pytorch_model.bin") in found
    assert ("scan/template-differs", "fern-Q4_K_M.gguf") in found
    assert ("scan/path", "../../.bashrc") in found
    assert data["revision"]
    assert data["numbers"] is False
    assert sent < 1.5 * 2**20  # of the pickle's 3 MiB, the two ends
    only = json.loads(again.stdout)["data"]
    assert (again.returncode, only["n_files"], only["findings"]) == (0, 1, [])


def test_a_base_that_cannot_be_asked_is_a_note(tmp_path: Path, cache: str) -> None:
    more = string("general.base_model.0.repo_url", "https://huggingface.co/fern/base")
    (tmp_path / "m.gguf").write_bytes(model(string("tokenizer.chat_template", PLAIN), more))
    done = run("scan", "m.gguf", "--json", cwd=tmp_path, QUANTPLAN_CACHE=cache, HF_HUB_OFFLINE="1")
    (finding,) = json.loads(done.stdout)["data"]["findings"]
    assert (done.returncode, finding["rule"], finding["severity"]) == (0, "scan/base-unread", "note")
    refused(run("scan", "m.gguf", "--base", "fern/base", cwd=tmp_path, QUANTPLAN_CACHE=cache, HF_HUB_OFFLINE="1"), 1,
            "fern/base")  # fmt: skip


def test_a_folder_as_base(tmp_path: Path, cache: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN}))
    (tmp_path / "m.gguf").write_bytes(template(PLAIN))
    done = run("scan", "m.gguf", "--base", "base", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert done.returncode == 0
    assert "renders 10 conversations as base does" in done.stdout


def test_an_engine_below_the_floor(tmp_path: Path, cache: str) -> None:
    tools = tmp_path / "old"
    tools.mkdir()
    for name in ("server", "quantize", "perplexity", "imatrix", "bench", "fit-params", "gguf-split", "tokenize"):
        tool = tools / f"llama-{name}"
        tool.write_text("#!/bin/sh\necho 'version: 5000 (abcdef0)' >&2\n")
        tool.chmod(0o755)
    (tmp_path / "m.gguf").write_bytes(template(PLAIN))
    done = run("scan", "m.gguf", "--llama", str(tools), "--no-data", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert done.returncode == 4
    assert "b5000, older than b8146" in done.stdout


BIDI = "\u202egpj.exe"


COMMANDS = (("inspect",), ("estimate",), ("recommend",), ("scan", "--no-data"), ("pull", "--reference", "none"))


@pytest.mark.parametrize("words", [*COMMANDS, ("inspect", "--json"), ("scan", "--no-data", "--json")])
def test_no_command_hands_a_terminal_what_it_acts_on(words: tuple[str, ...], tmp_path: Path, cache: str) -> None:
    name = string("general.name", f"Fern\r{BIDI}\u200b")
    kept = [one for one in MODEL_KEYS if b"general.name" not in one]
    raw = gguf(*kept, name, string("general.license", f"mit{BIDI}"), string("general.author", f"x{BIDI}"),
               tensors=MODEL_TENSORS, data=MODEL_DATA)  # fmt: skip
    (tmp_path / f"f{BIDI}.gguf").write_bytes(raw)
    done = run(*words, f"f{BIDI}.gguf", cwd=tmp_path, QUANTPLAN_CACHE=cache)
    assert not STEERS.search(done.stdout), STEERS.search(done.stdout)
    assert not STEERS.search(done.stderr), STEERS.search(done.stderr)
    assert done.stdout or done.stderr


def test_a_config_that_steers_a_terminal(tmp_path: Path, cache: str) -> None:
    (tmp_path / "m").mkdir()
    told = {"model_type": "ll\x1b[2Jama\u202e", "architectures": ["Ll\x1b]0;x\x07ama"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(told))
    for words in (("inspect", "m"), ("estimate", "m"), ("scan", "m"), ("build", "m", "--quant", "Q8_0", "--dry-run")):
        done = run(*words, cwd=tmp_path, QUANTPLAN_CACHE=cache)
        assert not STEERS.search(done.stdout + done.stderr), words
