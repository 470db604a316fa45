"""A folder is looked at before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantplan.errors import BadModelFile, UnsupportedArchitecture
from quantplan.pipeline.source import open_source, supported_architectures


def folder(path: Path, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 9, **config}))
    (path / "model.safetensors").write_bytes(b"12345678")
    (path / "tokenizer.model").write_bytes(b"1")
    return path


def converter(path: Path) -> Path:
    (path / "conversion").mkdir()
    (path / "conversion" / "llama.py").write_text(
        '@ModelBase.register("LlamaForCausalLM",\n    "MistralForCausalLM")\n'
    )
    script = path / "convert_hf_to_gguf.py"
    script.write_text("")
    return script


def test_a_good_folder(tmp_path: Path) -> None:
    found = open_source(folder(tmp_path / "my-model"), converter=converter(tmp_path))
    assert (found.name, found.architecture, found.weight_bytes, found.n_vocab) == ("my-model", "LlamaForCausalLM", 8, 9)
    assert [path.name for path in found.files] == ["config.json", "tokenizer.model", "model.safetensors"]


def test_registered_names_are_read_from_the_text(tmp_path: Path) -> None:
    assert supported_architectures(converter(tmp_path)) == {"LlamaForCausalLM", "MistralForCausalLM"}


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "no *.safetensors"),
        ("tokenizer.model", "no tokenizer"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, why: str) -> None:
    (folder(tmp_path / "m") / missing).unlink()
    with pytest.raises(BadModelFile) as caught:
        open_source(tmp_path / "m")
    assert why in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="no such folder"):
        open_source(tmp_path / "none")


def test_an_unsupported_architecture(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="'FooForCausalLM' is not supported"):
        open_source(folder(tmp_path / "m", architectures=["FooForCausalLM"]), converter=converter(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", '{"architectures": "x"}', '{"architectures": []}', "[" * 100_000])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (folder(tmp_path / "m") / "config.json").write_text(text)
    with pytest.raises(BadModelFile):
        open_source(tmp_path / "m")


@pytest.mark.parametrize(("name", "why"), [("../x.safetensors", "outside"), ("/x", "outside"), ("gone", "is missing")])
def test_an_index_stays_in_its_folder(tmp_path: Path, name: str, why: str) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (folder(tmp_path / "m") / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelFile, match=why):
        open_source(tmp_path / "m")
