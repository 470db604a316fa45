"""`quantplan inspect`, from the outside."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.rehearsal.weightless import write_weightless

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 512, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 4096,
}  # fmt: skip


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantplan", "inspect", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def document(*argv: str) -> dict[str, Any]:
    done = run(*argv, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["schema"] == "quantplan/inspect/1"
    data: dict[str, Any] = told["data"]
    return data


def test_a_catalog_model() -> None:
    data = document("Llama-3.1-8B")
    assert data["arch"] == "llama"
    assert (data["n_layer"], data["n_head"], data["n_head_kv"], data["n_vocab"]) == (32, [32], [8], 128256)
    assert data["parameters"] == 8030261248
    assert data["derived"] is True
    entry = data["sizes"]["Q4_K_M"]
    assert entry == {
        "tensor_bytes": 4912898048, "file_bytes": None, "bits_per_weight": 4.8944,
        "tensor_types": {"F32": 65, "Q4_K": 193, "Q6_K": 33}, "needs_imatrix": False,
    }  # fmt: skip
    assert data["sizes"]["IQ4_XS"]["with_imatrix"]["tensor_bytes"] < data["sizes"]["IQ4_XS"]["tensor_bytes"]
    assert "with_imatrix" not in entry
    assert data["sizes"]["IQ2_M"]["needs_imatrix"] is True


def test_a_configuration_alone_lists_its_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    data = document(str(tmp_path / "config.json"), "--tensors")
    rows = {row["name"]: (row["shape"], row["type"]) for row in data["tensors"]}
    assert rows["blk.1.ffn_gate_exps.weight"] == ([256, 512, 4], "BF16")
    assert rows["blk.1.ffn_gate_inp.weight"] == ([256, 4], "F32")
    assert (data["n_expert"], data["n_expert_used"]) == (4, 2)


def test_a_local_gguf_has_exact_file_sizes_and_a_cold_start_under_half_a_second(tmp_path: Path) -> None:
    entry = catalog.find("Llama-3.1-8B")
    assert entry is not None
    header, path = header_from_config(entry.config), tmp_path / "model.gguf"
    write_weightless(path, {**header.metadata, "general.quantization_version": 2}, header.tensors, vocab="synthetic")
    run(str(path))
    started = time.monotonic()
    done = run(str(path), "--json")
    seconds = time.monotonic() - started
    sizes = json.loads(done.stdout)["data"]["sizes"]
    assert sizes["BF16"]["file_bytes"] == path.stat().st_size
    assert 0 < sizes["Q4_K_M"]["file_bytes"] - sizes["Q4_K_M"]["tensor_bytes"] < 8 * 1024**2
    assert seconds < 1.5  # 0.4 s on an idle machine (scripts/bench_inspect.py); tests share theirs


def test_what_is_unknown_ends_with_a_sentence() -> None:
    done = run("llama-9.9-1b-nowhere.gguf")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")


def test_text_has_a_row_a_preset() -> None:
    done = run("Qwen3-8B")
    lines = done.stdout.splitlines()
    assert lines[0] == "Qwen/Qwen3-8B"
    assert any(line.split()[:4] == ["Q4_K_M", "4.7", "GiB", "4.90"] for line in lines)
    assert done.stderr == ""


@pytest.mark.tools
def test_verify_asks_the_tool(llama_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    data = document(str(tmp_path / "config.json"), "--verify")
    assert data["differences"] == []


def test_a_vision_tower_is_counted_apart(tmp_path: Path) -> None:
    config = {**MIXTRAL, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_local_experts": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in {
        "model.embed_tokens.weight": [512, 256], "vision_tower.patch_embed.weight": [16, 8],
    }.items():  # fmt: skip
        n_bytes = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    data = document(str(tmp_path))
    assert data["vision"] == {"parameters": 128, "bytes": 256}
    assert data["derived"] is False


def test_a_refused_quantization_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MIXTRAL, "quantization_config": {"quant_method": "awq"}}))
    done = run(str(tmp_path / "config.json"))
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the pinned converter does not read checkpoints quantized with awq\n"
        "Hint: name the checkpoint it was quantized from, or a GGUF of it\n"
    )


def test_the_sizes_as_csv() -> None:
    done = run("Qwen/Qwen3-8B", "--csv", "-")
    rows = {row["preset"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert (done.returncode, rows["Q4_K_M"]["model"]) == (0, "Qwen/Qwen3-8B")
    assert int(rows["Q8_0"]["tensor_bytes"]) > int(rows["Q4_K_M"]["tensor_bytes"]) > 4_000_000_000
    assert (rows["IQ1_S"]["needs_imatrix"], rows["Q4_K_M"]["needs_imatrix"]) == ("True", "False")
