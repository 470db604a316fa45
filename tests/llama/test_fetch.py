"""What a build needs, without naming a host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quantplan.errors import ToolFailed
from quantplan.llama import fetch
from quantplan.llama.types import Completed


def test_the_wheels_toolkit_gets_the_names_that_cmake_looks_for(tmp_path: Path) -> None:
    """The layout of nvidia-cuda-nvcc 13.5.37 and nvidia-cuda-runtime 13.5.37: libraries by number only."""
    root, driver = tmp_path / "nvidia" / "cu13", tmp_path / "libcuda.so.1"
    (root / "lib").mkdir(parents=True)
    for name in ("libcudart.so.13", "libcublas.so.13", "libnvvm.so.4"):
        (root / "lib" / name).touch()
    driver.touch()
    for _ in range(2):
        fetch.lay_out_toolkit(root, drivers=(tmp_path / "none", driver))
    assert (root / "lib" / "libcudart.so").readlink() == Path("libcudart.so.13")
    assert (root / "lib64" / "libcublas.so").exists()
    assert (root / "lib" / "stubs" / "libcuda.so").readlink() == driver


def test_wheels_without_a_compiler_are_no_silent_cpu_build(tmp_path: Path) -> None:
    def pip(argv: Sequence[str], **_rest: Any) -> Completed:
        assert "--target" in argv
        return Completed(argv=tuple(argv), returncode=0, seconds=0, peak_rss_bytes=None, stdout=(), stderr=())

    with pytest.raises(ToolFailed, match="no nvcc inside"):
        fetch.cuda_from_wheels(tmp_path / "wheels", say=lambda _text: None, run=pip)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("Would install torch-2.13.0+cpu", True), ("Would install torch-2.13.0", False), ("", False)],
)
def test_a_cpu_build_of_torch_is_known_by_its_version(line: str, expected: bool) -> None:
    def pip(argv: Sequence[str], **_rest: Any) -> Completed:
        return Completed(argv=tuple(argv), returncode=0, seconds=0, peak_rss_bytes=None, stdout=(line,), stderr=())

    assert fetch._resolves_to_cpu("torch==2.13.0", pip) is expected
