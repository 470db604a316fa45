"""Values that are not finite are found in every type that the engine can load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_gguf import blocks, damage, write_raw_gguf

from quantplan.ggml_types import ggml_types
from quantplan.pipeline import tensor_data

FLOATING = [name for name in ggml_types() if name not in tensor_data.INTEGERS]


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
