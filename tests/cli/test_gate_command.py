"""quantplan gate: what it says and how it exits, without measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry, entry_of, write_receipt
from quantplan.cli.main import main
from quantplan.places import data_file

SHA = "a" * 64


def quantplan(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_explain_policy(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = quantplan("gate", "--explain-policy", "--policy", "reasoning", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.startswith("quantplan/reasoning/1: As standard, and stricter on worked steps")
    assert "after 20, 40, 80, 140, 200 windows" in out
    assert "kld_mean: mean KL divergence, nats a token: at most 0.01, or it at most 10 × that of the floor" in out
    assert "Quality on sums instead:" in out
    code, out, _ = quantplan("gate", "--explain-policy", "--json", capsys=capsys)
    told: dict[str, Any] = json.loads(out)
    jsonschema.validate(told, json.loads(data_file("schemas", "gate-1.schema.json").read_text()))
    assert told["data"]["policy"]["quality"]["kld_mean"]["of_q8_0"] == 30


def test_a_key_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text('schema = "quantplan/policy/1"\n[quality]\nkld_meen = { at_most = 1 }\n')
    code, out, err = quantplan("gate", "x", "--policy", tmp_path / "p.toml", capsys=capsys)
    assert (code, out) == (2, "")
    code, out, err = quantplan("gate", tmp_path, "--policy", tmp_path / "p.toml", capsys=capsys)
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == (
        "Error: policy p.toml: quality.kld_meen: is not a key of a policy; near: kld_mean"
    )  # fmt: skip
    assert err.splitlines()[1].startswith("Hint: quantplan gate --explain-policy")


def test_what_is_missing_is_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantplan("gate", capsys=capsys)[0] == 2
    assert quantplan("gate", tmp_path / "none", capsys=capsys)[0] == 2
    code, _, err = quantplan("gate", tmp_path, "--policy", "standrad", capsys=capsys)
    assert code == 2
    assert "neither a preset nor a file; near: standard" in err
    assert "Hint: quantplan gate ARTIFACT --policy standard" in err


def artifact(folder: Path) -> Path:
    folder.mkdir()
    (folder / "m-Q4_K_M.gguf").write_bytes(b"GGUF weights")
    file = entry_of(folder / "m-Q4_K_M.gguf")
    step = StepEntry(name="quantize", argv=("llama-quantize",), inputs=(file,), output="m", seconds=1.0,
                     peak_rss_bytes=9)  # fmt: skip
    write_receipt(folder, Receipt(
        files=(file,), quant="Q4_K_M", source={"name": "m"}, tools={"tool": "llama.cpp"}, steps=(step,),
        texts=(FileEntry(name="prose", sha256=SHA, bytes=3),),
    ))  # fmt: skip
    return folder


@pytest.mark.tools
def test_any_changed_bit_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact(tmp_path / "a")
    model = folder / "m-Q4_K_M.gguf"
    whole = model.read_bytes()
    for i in range(len(whole)):
        model.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        code, out, err = quantplan("gate", folder, capsys=capsys)
        assert (code, out) == (4, "")
        assert "sha256 is" in err


@pytest.mark.tools
def test_no_reference_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = quantplan("gate", artifact(tmp_path / "a"), capsys=capsys)
    assert (code, out) == (2, "")
    assert "no 16-bit reference to measure against" in err
    assert "--reference model-BF16.gguf" in err
    (tmp_path / "notes.txt").write_text("no model")
    code, _, err = quantplan("gate", tmp_path / "notes.txt", capsys=capsys)
    assert code == 1
    assert "is neither an artifact folder nor a GGUF" in err
