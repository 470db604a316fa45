"""The header reader against files that gguf.GGUFWriter wrote."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import gguf
import pytest
from gguf_fixture import vocabulary_gguf, write_gguf

from quantplan.errors import BadModelFile
from quantplan.model.gguf_header import ArrayInfo, GgufTensor, read_gguf_header
from quantplan.units import GIB


def test_every_value_type_and_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    header = read_gguf_header(path)
    assert (header.version, header.alignment) == (3, 32)
    assert header.metadata == {
        "general.architecture": "llama",
        "t.u8": 200, "t.i8": -100, "t.u16": 65_000, "t.i16": -30_000, "t.u32": 4_000_000_000, "t.i32": -2_000_000_000,
        "t.u64": 2**63, "t.i64": -(2**62), "t.f32": 0.5, "t.f64": 0.1, "t.yes": True, "t.no": False,
        "t.text": "déjà\n{%- if x %}",
        "t.flags": (True, False, True), "t.heads": (8, 8, 0), "t.words": ("a", "", "ccc"),
        "tokenizer.ggml.tokens": ArrayInfo(type_name="STRING", n=4),
        "tokenizer.ggml.scores": ArrayInfo(type_name="FLOAT32", n=3),
    }  # fmt: skip
    assert header.tensors == (
        GgufTensor(name="token_embd.weight", shape=(64, 3), type_name="F32", offset=0, n_bytes=768),
        GgufTensor(name="output_norm.weight", shape=(5,), type_name="F32", offset=768, n_bytes=20),
        GgufTensor(name="blk.0.ffn_up.weight", shape=(256, 2), type_name="Q4_K", offset=800, n_bytes=288),
    )
    assert header.file_bytes == path.stat().st_size
    assert header.data_offset == gguf.GGUFReader(path).data_offset


def test_a_split_model_is_read_by_any_shard(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", split_max_tensors=1)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    headers = [read_gguf_header(tmp_path / name) for name in names]
    assert headers[0] == headers[1] == headers[2]
    assert [(t.name, t.shard, t.offset) for t in headers[1].tensors] == [
        ("token_embd.weight", 0, 0), ("output_norm.weight", 1, 0), ("blk.0.ffn_up.weight", 2, 0),
    ]  # fmt: skip
    assert headers[2].metadata["t.u8"] == 200
    assert headers[0].file_bytes == sum((tmp_path / name).stat().st_size for name in names)
    assert [Path(s.path).name for s in headers[0].shards] == names


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", split_max_tensors=1)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(BadModelFile, match=r"m-00002-of-00003\.gguf: shard 2 of 3: No such file or directory"):
        read_gguf_header(tmp_path / "m-00001-of-00003.gguf")


def test_a_real_vocabulary_takes_at_most_100_ms_and_60_mb(tmp_path: Path) -> None:
    """Time of the processor, as tests share it. scripts/bench_gguf_header.py measures beside gguf.GGUFReader."""
    path = tmp_path / "m.gguf"
    head = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=280_147, token_bytes=7)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 16 * GIB)
    took = []
    for _ in range(5):
        start = time.process_time()
        header = read_gguf_header(path)
        took.append(time.process_time() - start)
    assert header.metadata["tokenizer.ggml.merges"] == ArrayInfo(type_name="STRING", n=280_147)
    assert min(took) <= 0.1
    tracemalloc.start()
    read_gguf_header(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes <= 2_000_000  # a few windows; the bar is 60 MB
