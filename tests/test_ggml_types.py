"""Our type sizes against the engine: it refuses a file in which a tensor does not start where it computes it."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.ggml_types import GgmlType, ggml_types, ggml_types_by_value
from quantplan.units import pad


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _write_one_of_each(path: Path, types: list[GgmlType], *, wrong: str | None = None) -> None:
    """A llama with one tensor of each type, at offsets of our sizes; the data is a hole."""
    numbers = {"llama.block_count": 1, "llama.context_length": 8, "llama.embedding_length": 256,
               "llama.feed_forward_length": 256, "llama.attention.head_count": 4}  # fmt: skip
    keys = [_text("general.architecture") + struct.pack("<I", 8) + _text("llama")]
    keys += [_text(name) + struct.pack("<II", 4, value) for name, value in numbers.items()]
    infos, at = [], 0
    for kind in types:
        infos.append(_text(f"{kind.name}.weight") + struct.pack("<IQQIQ", 2, 2560, 8, kind.value, at))
        size = kind.row_bytes(2560) * 8 + (32 if kind.name == wrong else 0)
        at = pad(at + size, 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(pad(len(head), 32) + at)


def _dry_run(llama_bin: Path, path: Path) -> subprocess.CompletedProcess[str]:
    argv = [llama_bin / "llama-quantize", "--dry-run", path, "COPY"]
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        env={"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": str(path.parent)},
    )


@pytest.mark.tools
def test_every_size_is_the_engines(llama_bin: Path, tmp_path: Path) -> None:
    types = sorted(ggml_types().values(), key=lambda kind: kind.value)
    assert {"Q2_0", "NVFP4", "MXFP4", "Q1_0"} <= {kind.name for kind in types}
    _write_one_of_each(tmp_path / "m.gguf", types)
    done = _dry_run(llama_bin, tmp_path / "m.gguf")
    assert "failed to read tensor" not in done.stdout + done.stderr, done.stderr[-500:]
    said = (done.stdout + done.stderr).lower()
    for kind in types:  # the loader counts them, once it has accepted every offset
        assert re.search(rf"- type +{kind.name.lower()}: +1 tensors", said), kind.name
    for kind in types[:-1]:
        _write_one_of_each(tmp_path / "wrong.gguf", types, wrong=kind.name)
        done = _dry_run(llama_bin, tmp_path / "wrong.gguf")
        assert "failed to read tensor" in done.stdout + done.stderr


def test_sizes_come_from_gguf_without_numpy() -> None:
    code = (
        "import sys\nfrom quantplan.ggml_types import ggml_types\n"
        "assert ggml_types()['Q4_K'].type_size == 144\nprint('numpy' in sys.modules, 'gguf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_numbers_are_those_of_a_file() -> None:
    assert ggml_types_by_value()[42] == GgmlType(name="Q2_0", value=42, block_size=64, type_size=18)
    assert len(ggml_types_by_value()) == len(ggml_types())
