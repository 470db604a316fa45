"""GGUF files without weights: readable by us and by gguf, and a hole where the data would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantplan.errors import BadValue
from quantplan.model import catalog
from quantplan.model.facts import TensorFacts
from quantplan.model.gguf_header import read_gguf_header
from quantplan.model.hf_config import ConvertedHeader, header_from_config
from quantplan.rehearsal.weightless import write_weightless


def header(name: str) -> ConvertedHeader:
    entry = catalog.find(name)
    assert entry is not None
    return header_from_config(entry.config)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "LFM2-1.2B", "Mamba2-2.7B", "Granite-4.0-H-Small"])
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    source, path = header(name), tmp_path / "w.gguf"
    size = write_weightless(path, source.metadata, source.tensors)
    read = read_gguf_header(path)
    assert [(t.name, t.shape, t.type_name) for t in read.tensors] == [
        (t.name, t.shape, t.type_name) for t in source.tensors
    ]
    kept = {key: list(v) if isinstance(v, tuple) else v for key, v in read.metadata.items()}
    assert kept == source.metadata
    assert read.file_bytes == size == path.stat().st_size


def test_the_data_is_a_hole(tmp_path: Path) -> None:
    source, path = header("Llama-3.1-8B"), tmp_path / "w.gguf"
    size = write_weightless(path, source.metadata, source.tensors)
    assert size > 16 * 10**9
    assert path.stat().st_blocks * 512 < 1_000_000


def test_a_synthetic_vocabulary_has_the_models_size(tmp_path: Path) -> None:
    import gguf

    source, path = header("Qwen3-0.6B"), tmp_path / "w.gguf"
    write_weightless(path, source.metadata, source.tensors, vocab="synthetic")
    fields = gguf.GGUFReader(path).fields
    assert len(fields["tokenizer.ggml.tokens"].data) == 151936
    assert fields["tokenizer.ggml.model"].contents() == "llama"


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        write_weightless(tmp_path / "w", {}, [TensorFacts(name="a.weight", shape=(32,), type_name="Q9")])


@pytest.mark.tools
@pytest.mark.parametrize("vocab", ["none", "synthetic"])
def test_the_tools_take_it(vocab: str, llama_bin: Path, tmp_path: Path) -> None:
    from quantplan.rehearsal.verify_presets import ask_tool

    source, path = header("Qwen3-0.6B"), tmp_path / "w.gguf"
    write_weightless(path, source.metadata, source.tensors, vocab=vocab)  # type: ignore[arg-type]
    argv = (str(llama_bin / "llama-fit-params"), "-m", str(path), "-fitp", "on", "-c", "2048")
    code, lines = ask_tool(argv)
    assert code == 0, lines
