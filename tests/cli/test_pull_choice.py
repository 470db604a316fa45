"""Which files of a GGUF repository are taken together, and what one is judged by."""

from __future__ import annotations

import pytest

from quantplan.cli.pull_source import _projector, _reference


def test_the_projector_of_sixteen_bits() -> None:
    names = ["m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-F16.gguf", "mmproj-m-BF16.gguf", "old/mmproj.bin"]
    assert _projector(names) == ("mmproj-m-F16.gguf",)
    assert _projector(["m-Q4_K_M.gguf"]) == ()


@pytest.mark.parametrize(
    ("offered", "file", "reference"),
    [
        (("m-BF16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"), "m-Q4_K_M.gguf", "m-BF16.gguf"),
        (("m-F16.gguf", "m-Q4_K_M.gguf"), "m-Q4_K_M.gguf", "m-F16.gguf"),
        (("m-Q4_K_M.gguf", "m-Q8_0.gguf"), "m-Q4_K_M.gguf", "m-Q8_0.gguf"),
        (("m-Q4_K_M.gguf", "m-Q8_0.gguf"), "m-Q8_0.gguf", None),
        (("m-BF16.gguf", "m-Q8_0.gguf"), "m-BF16.gguf", None),
        (("m-Q4_K_M.gguf",), "m-Q4_K_M.gguf", None),
    ],
)
def test_what_a_file_is_judged_by(offered: tuple[str, ...], file: str, reference: str | None) -> None:
    assert _reference(offered, file) == reference
