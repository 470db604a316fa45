"""A safetensors header is untrusted input too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantplan.errors import BadModelFile, QuantplanError
from quantplan.model.checkpoint import is_safe_name
from quantplan.model.safetensors_header import (
    SafetensorsTensor,
    header_length,
    parse_safetensors_header,
    read_safetensors_header,
)

GOOD = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
    "packed": {"dtype": "F4", "shape": [2, 4], "data_offsets": [24, 28]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]},
}


def write(path: Path, header: object, *, data: int = 36, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data))
    return path


def test_names_types_and_shapes_in_the_order_of_the_data(tmp_path: Path) -> None:
    assert read_safetensors_header(write(tmp_path / "m", GOOD)) == (
        SafetensorsTensor(name="a", dtype="BF16", shape=(4,)),
        SafetensorsTensor(name="b", dtype="F32", shape=(2, 2)),
        SafetensorsTensor(name="packed", dtype="F4", shape=(2, 4)),
        SafetensorsTensor(name="scalar", dtype="I64", shape=()),
    )


def test_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"x": np.zeros((3, 5), np.float16), "y": np.zeros(7, np.int8)}, tmp_path / "m")
    assert {t.name: (t.dtype, t.shape) for t in read_safetensors_header(tmp_path / "m")} == {
        "x": ("F16", (3, 5)),
        "y": ("I8", (7,)),
    }


def changed(**parts: object) -> dict[str, object]:
    """GOOD with parts of tensor `a` changed."""
    return {**GOOD, "a": {**GOOD["a"], **parts}}


CASES = [
    ("dtype", changed(dtype="Q4"), r"tensor 'a': has the unknown dtype 'Q4'"),
    ("dtype no name", changed(dtype=["F32"]), r"tensor 'a': has the unknown dtype"),
    ("negative", changed(shape=[-4]), r"tensor 'a': its shape is not a list of counts"),
    ("float", changed(shape=[4.0]), r"tensor 'a': its shape is not a list of counts"),
    ("true", changed(shape=[True]), r"tensor 'a': its shape is not a list of counts"),
    ("nested", changed(shape=[[4]]), r"tensor 'a': its shape is not a list of counts"),
    ("many dimensions", changed(shape=[1] * 100), r"tensor 'a': its shape is not a list of counts"),
    ("overflow", changed(shape=[2**62, 2**62]), r"tensor 'a': the impossible shape"),
    ("half a byte", changed(dtype="F4", shape=[1], data_offsets=[0, 0]), r"tensor 'a': the impossible shape"),
    ("offsets", changed(data_offsets=[0]), r"tensor 'a': its data_offsets are not two offsets"),
    ("no offsets", changed(data_offsets=None), r"tensor 'a': its data_offsets are not two offsets"),
    ("size", changed(data_offsets=[0, 9]), r"tensor 'a': its data_offsets span 9 bytes, BF16 \[4\] takes 8"),
    ("backwards", changed(data_offsets=[8, 0]), r"tensor 'a': its data_offsets span -8 bytes"),
    ("overlap", changed(data_offsets=[1, 9]), r"tensor 'a': its data at 1 leaves a gap: 0 expected"),
    ("same place", {**GOOD, "z": GOOD["a"]}, r"tensor 'z': its data at 0 overlaps the tensor before: 8 expected"),
    ("no object", {**GOOD, "z": 3}, r"tensor 'z': is not described by an object"),
    ("control", {**GOOD, "z\x1b": GOOD["a"]}, r"tensor 'z\\x1b': a name that is empty, too long or has control"),
    ("twice", b'{"a":1,"a":2}', r"is not good JSON: key 'a' is there twice"),
    ("list", b"[]", r"is not a JSON object"),
    ("not JSON", b"{]", r"is not JSON: .* \(at byte 1\)"),
    ("not UTF-8", b'{"\xff":1}', r"is not UTF-8 \(at byte 2\)"),
    ("deep", b'{"a":' * 100_000, r"is nested too deeply|is not JSON"),
]


@pytest.mark.parametrize(("header", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(header: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=expected):
        read_safetensors_header(write(tmp_path / "m.safetensors", header))


def test_lengths_against_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"is too short for a safetensors file \(at byte 3\)"):
        header_length(b"abc", name="m", file_bytes=3)
    with pytest.raises(BadModelFile, match="declares a header of 5,000 bytes, the file has"):
        read_safetensors_header(write(tmp_path / "m", GOOD, length=5000))
    with pytest.raises(BadModelFile, match="declares a header of 100,000,000 bytes: not a safetensors file"):
        read_safetensors_header(write(tmp_path / "m", GOOD, length=100_000_000))
    for data in (35, 37):
        with pytest.raises(BadModelFile, match=r"the file has .* \(is it truncated\?\)"):
            read_safetensors_header(write(tmp_path / "m", GOOD, data=data))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=400, deadline=1000, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.dictionaries(st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"]), VALUES))
def test_any_json_is_read_or_refused(part: dict[str, object]) -> None:
    for header in ({**GOOD, **part}, {**GOOD, "a": {**GOOD["a"], **part}}):
        try:
            parse_safetensors_header(json.dumps(header).encode(), name="m", file_bytes=None)
        except QuantplanError as error:
            assert str(error).isprintable()


@settings(
    max_examples=400, deadline=1000, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        parse_safetensors_header(raw, name="m", file_bytes=None)
    except QuantplanError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["a.safetensors", "sub/a.safetensors", "a-00001-of-00002.safetensors", "é"])
def test_safe_names(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/../b", "/a", "//a", "a//b", "./a", "a/", "a\\b", "C:/a", "a\nb", "a\x00", "x" * 300]
)
def test_names_that_leave_the_folder(name: str) -> None:
    assert not is_safe_name(name)
