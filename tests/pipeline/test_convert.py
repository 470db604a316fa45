"""Which 16 bits, which name, and whether there is a projector."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantplan.pipeline.convert import has_projector, wanted_outtype
from quantplan.pipeline.request import file_stem
from quantplan.pipeline.source import Source


@pytest.mark.parametrize(
    ("asked", "dtypes", "outtype", "warned"),
    [
        ("bf16", {"BF16", "F32"}, "bf16", False),
        ("auto", {"BF16"}, "bf16", False),
        ("auto", {"F16"}, "f16", False),
        ("auto", {"F32"}, "bf16", False),
        ("auto", {"F16", "F32"}, "bf16", False),
        ("f16", {"BF16"}, "f16", True),
        ("f16", {"F16"}, "f16", False),
        ("f32", {"BF16"}, "f32", False),
    ],
)
def test_outtype(asked: str, dtypes: set[str], outtype: str, warned: bool) -> None:
    found, warning = wanted_outtype(asked, frozenset(dtypes))
    assert found == outtype
    assert (warning is not None) == warned


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("quantplan-tiny", "quantplan-tiny"),
        ("Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B-Instruct-2507"),
        ("gpt-oss-20b", "gpt-oss-20B"),
        ("Mistral-7B-Instruct-v0.3", "Mistral-7B-Instruct-v0.3"),
        ("my model", "my-model"),
    ],
)
def test_names_follow_the_convention(name: str, stem: str) -> None:
    assert file_stem(name) == stem


REGISTRY = 'MMPROJ_MODEL_MAP: dict[str, str] = {\n    "SeesForConditionalGeneration": "sees",\n}\nX = {"Blind": 1}\n'


@pytest.mark.parametrize(
    ("architecture", "config", "sees"),
    [
        ("SeesForConditionalGeneration", {"vision_config": {"hidden_size": 1}}, True),
        ("SeesForConditionalGeneration", {}, False),  # text alone of a family that can see
        ("Blind", {"vision_config": {"hidden_size": 1}}, False),  # unknown to the converter's mmproj part
        ("Other", {"vision_config": {"architectures": ["SeesForConditionalGeneration"]}}, True),
    ],
)
def test_projectors(tmp_path: Path, architecture: str, config: dict[str, object], sees: bool) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text(REGISTRY)
    source = Source(folder=tmp_path, name="m", architecture=architecture, config=config, files=(), weight_bytes=0)
    assert has_projector(source, tmp_path / "convert_hf_to_gguf.py") is sees
