"""What `quantplan build` refuses of its options before any work, and what it says of builds that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run

from quantplan.cli.build_request import Options
from quantplan.cli.build_types import overrides, split_bytes
from quantplan.errors import BadValue
from quantplan.places import data_file

TEXT = data_file("bundled", "eval", "sums.txt")


def test_model_may_be_left_out_for_status_only(tmp_path: Path) -> None:
    refused(run("build", cwd=tmp_path), 2, "Missing argument 'MODEL'")
    done = run("build", "--status", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no builds in artifacts\n")
    told = json.loads(run("build", "--status", "--json", cwd=tmp_path).stdout)
    assert told["data"] == {"builds": []}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tensor-type", "attn_v"), "tensor type 'attn_v' is not NAME=TYPE"),
        (("--tensor-type", "attn_v=Q4_K_M"), "tensor type 'Q4_K_M' is no ggml type"),
        (("--tensor-type", "attn_(=q4_k"), "has a name that is no regular expression"),
        (("--output-tensor-type", "Q9"), "tensor type 'Q9' is no ggml type"),
        (("--split-max-size", "many"), "size of a split 'many' is no size"),
        (("--split-max-size", "10k"), "is less than 1 MB"),
        (("--calibration", str(TEXT), "--imatrix", str(TEXT)), "and a calibration text were both given"),
        (("--calibration", str(TEXT)), "is the evaluation text 'sums' too"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    refused(run("build", "quantplan-tiny", *words, cwd=tmp_path), 2, says)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("option", ["--calibration", "--imatrix"])
def test_files_that_are_not_there(tmp_path: Path, option: str) -> None:
    refused(run("build", "quantplan-tiny", option, "nosuch", cwd=tmp_path), 1, "nosuch: no such file")


def test_tensor_types_come_from_words_and_from_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "types.txt"
    listed.write_text("ffn_down=Q6_K\nattn_.*=q5_k  output=q8_0\n")
    told = overrides(
        Options(quants=("Q4_K_M",), output=tmp_path, tensor_types=("attn_v=Q8_0",), tensor_type_file=listed, pure=True)
    )
    assert told.tensor_types == (("attn_v", "q8_0"), ("ffn_down", "q6_k"), ("attn_.*", "q5_k"), ("output", "q8_0"))
    assert told.flags() == (
        "--pure", "--tensor-type", "attn_v=q8_0", "--tensor-type", "ffn_down=q6_k", "--tensor-type", "attn_.*=q5_k",
        "--tensor-type", "output=q8_0",
    )  # fmt: skip
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(Exception, match="is not UTF-8 text"):
        overrides(Options(quants=("Q4_K_M",), output=tmp_path, tensor_type_file=listed))


def test_sizes_of_splits(tmp_path: Path) -> None:
    assert split_bytes(Options(quants=(), output=tmp_path)) is None
    assert split_bytes(Options(quants=(), output=tmp_path, split_max_size="48GB")) == 48_000_000_000
    with pytest.raises(BadValue):
        split_bytes(Options(quants=(), output=tmp_path, split_max_size="-1G"))
