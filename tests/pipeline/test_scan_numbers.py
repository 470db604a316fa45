"""The engine's check and ours find the same block, and neither is asked about a file that is unsound."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_gguf import blocks, damage, write_raw_gguf

from quantplan.ggml_types import ggml_types
from quantplan.llama.process import run_tool
from quantplan.model.gguf_header import read_gguf_header
from quantplan.pipeline.scanning.numbers import library_of, scan_numbers

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "IQ1_M")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound tensors and one with a bad block of every type."""
    path, tensors = tmp_path_factory.mktemp("numbers") / "m.gguf", []
    for name in TYPES:
        bad = blocks(name, 40)
        damage(name, bad, 17)
        tensors += [(f"good.{name}", name, blocks(name, 40)), (f"bad.{name}", name, bad)]
    write_raw_gguf(path, tensors)
    return path


def test_our_own_check(file: Path) -> None:
    found = scan_numbers(file, read_gguf_header(file), library=None)
    assert [one.where for one in found] == [f"tensor 'bad.{name}'" for name in TYPES]
    _at_the_block(file, {str(one.where): one.offset for one in found})


def test_the_engines_check(file: Path, toolchain) -> None:  # type: ignore[no-untyped-def]
    found = scan_numbers(file, read_gguf_header(file), library=library_of(toolchain))
    assert [one.where for one in found] == [f"tensor 'bad.{name}'" for name in TYPES]
    assert all("the engine's check" in one.message for one in found)


def _at_the_block(file: Path, offsets: dict[str, int | None]) -> None:
    header = read_gguf_header(file)
    for tensor in header.tensors:
        if tensor.name.startswith("bad."):
            size = ggml_types()[tensor.type_name].type_size
            assert offsets[f"tensor {tensor.name!r}"] == header.data_offset + tensor.offset + 17 * size


def test_limits_end_it(file: Path) -> None:
    """A check that is ended early is told as an error, never as a pass."""

    def stopped(argv, **more):  # type: ignore[no-untyped-def]
        return run_tool(("sh", "-c", "exit 9"), **more)

    (found,) = scan_numbers(file, read_gguf_header(file), library=None, run=stopped)
    assert (found.rule, found.severity.value) == ("scan/numbers-unread", "error")
