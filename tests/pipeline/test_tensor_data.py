"""Values that are not finite are found in every type that the engine can load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_gguf import write_raw_gguf

from quantplan.ggml_types import ggml_types
from quantplan.pipeline import tensor_data

HALF_INF, HALF_NAN = 0x7C00, 0x7E00
FLOATING = [name for name in ggml_types() if name not in tensor_data.INTEGERS]


def blocks(name: str, n: int = 5) -> np.ndarray:
    """n blocks whose floats are all one or nought."""
    return np.zeros((n, ggml_types()[name].type_size), np.uint8)


def damage(name: str, raw: np.ndarray, i: int) -> None:
    """Makes the last float of block i infinite, or not a number where the type has no infinity."""
    if name in tensor_data.HALF_SCALES:
        at = tensor_data.HALF_SCALES[name][-1]
        raw[i, at : at + 2] = np.frombuffer(np.uint16(HALF_INF).tobytes(), np.uint8)
    elif name == "IQ1_M":
        for k, nibble in enumerate((0x0, 0x0, 0xC, 0x7)):  # 0x7c00, top nibbles of four words
            raw[i, 48 + 2 * k + 1] = nibble << 4
    elif name == "MXFP4":
        raw[i, 0] = 0xFF
    elif name == "NVFP4":
        raw[i, 3] = 0x7F
    else:
        value = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "Q8_K": np.float32}.get(name)
        bits = np.uint16(0x7FC0).tobytes() if value is None else value(np.nan).tobytes()
        raw[i, : len(bits)] = np.frombuffer(bits, np.uint8)


@pytest.mark.parametrize("name", FLOATING)
def test_every_type(name: str, tmp_path: Path) -> None:
    clean, broken = blocks(name), blocks(name)
    damage(name, broken, 3)
    write_raw_gguf(tmp_path / "m.gguf", [("good", name, clean), ("bad", name, broken)])
    (found,) = tensor_data.not_finite(tmp_path / "m.gguf")
    assert (found.tensor, found.type_name, found.n_bad) == ("bad", name, 1)
    raw = (tmp_path / "m.gguf").read_bytes()
    assert found.first_offset is not None
    unit = ggml_types()[name].type_size
    assert raw[found.first_offset : found.first_offset + unit] == broken[3].tobytes()


def test_slices_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = blocks("Q4_K", 50)
    damage("Q4_K", raw, 37)
    write_raw_gguf(tmp_path / "m.gguf", [("t", "Q4_K", raw)])
    whole = tensor_data.not_finite(tmp_path / "m.gguf")
    monkeypatch.setattr(tensor_data, "_SLICE_BYTES", 500)
    assert tensor_data.not_finite(tmp_path / "m.gguf") == whole


def test_every_known_type_is_covered() -> None:
    """A type that gguf learns must be added here too: it is told as unknown, not as good."""
    for name in FLOATING:
        tensor_data._wrong(name, blocks(name, 1))
    with pytest.raises(KeyError):
        tensor_data._wrong("Q9_X", np.zeros((1, 4), np.uint8))
