"""Importance matrices: what they have no data of, and what they may not carry along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantplan.errors import BadModelFile
from quantplan.model.facts import TensorFacts
from quantplan.model.gguf_header import read_gguf_header
from quantplan.pipeline.imatrix import coverage, take_given, verify_imatrix, without_data_sentence


def matrix(
    path: Path, counts: Mapping[str, list[float]], *, dataset: str = "calibration.txt", kind: str = "imatrix"
) -> Path:
    """A file as llama-imatrix writes it."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in counts.items():
        writer.add_tensor(f"{name}.in_sum2", np.ones((len(values), 4), np.float32))
        writer.add_tensor(f"{name}.counts", np.array([[v] for v in values], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_experts_and_tensors_without_data_are_named(tmp_path: Path) -> None:
    path = matrix(tmp_path / "i.gguf", {"blk.0.ffn_up_exps.weight": [3, 0, 5, 0], "blk.0.attn_q.weight": [512]})
    tensors = tuple(
        TensorFacts(name=name, shape=shape, type_name="BF16")
        for name, shape in (("blk.0.attn_q.weight", (4, 4)), ("blk.0.attn_norm.weight", (4,)),
                            ("blk.1.attn_q.weight", (4, 4)), ("token_embd.weight", (4, 9)))
    )  # fmt: skip
    found = coverage(path, tensors)
    assert found.n_chunks == 7
    assert found.n_entries == 2
    lacking = ("blk.0.ffn_up_exps.weight[1]", "blk.0.ffn_up_exps.weight[3]", "blk.1.attn_q.weight")
    assert found.without_data == lacking
    assert without_data_sentence(lacking) == (
        f"the importance matrix has no data for {', '.join(lacking)}: quantized as without a matrix"
    )


def test_a_tensor_without_any_data_is_named_whole(tmp_path: Path) -> None:
    assert coverage(matrix(tmp_path / "i.gguf", {"blk.0.x.weight": [0, 0]})).without_data == ("blk.0.x.weight",)


def test_what_is_no_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="is no importance matrix"):
        verify_imatrix(matrix(tmp_path / "m.gguf", {}, kind="model"))
    (tmp_path / "old.dat").write_bytes(b"\x05\0\0\0" * 9)
    with pytest.raises(BadModelFile, match="this is not a GGUF file"):
        take_given(tmp_path / "old.dat", tmp_path / "imatrix.gguf")


@pytest.mark.parametrize("dataset", ["/home/me/secret/wiki.txt", "C:\\Users\\me\\wiki.txt", "wiki.txt"])
def test_a_given_matrix_brings_no_local_path(tmp_path: Path, dataset: str) -> None:
    counts = {"blk.0.ffn_up_exps.weight": [3.0, 0.0], "blk.0.attn_q.weight": [512.0]}
    given = matrix(tmp_path / "given.gguf", counts, dataset=dataset)
    take_given(given, tmp_path / "imatrix.gguf")
    header = read_gguf_header(tmp_path / "imatrix.gguf")
    assert header.metadata["imatrix.datasets"] == ("wiki.txt",)
    assert coverage(tmp_path / "imatrix.gguf") == coverage(given)
    assert b"me" not in (tmp_path / "imatrix.gguf").read_bytes().replace(b"name", b"")
