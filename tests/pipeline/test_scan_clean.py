"""Sound files give nothing above a note; and a large one costs nothing before its numbers are read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from clean_models import TEMPLATES, write_clean
from hostile_gguf import MODEL_KEYS, gguf, tensor

from quantplan.artifact.results import Severity, Verdict
from quantplan.pipeline.scanning.numbers import library_of
from quantplan.pipeline.scanning.scan import Request, scan
from quantplan.pipeline.scanning.structure import read_structure
from quantplan.pipeline.scanning.template import scan_template


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clean(tmp_path_factory.mktemp("clean"))


def test_thirty_sound_files(clean: list[Path]) -> None:
    for path in clean[::3]:
        found = scan(str(path), Request(base="none"))
        assert [one for one in found.findings if one.severity is not Severity.NOTE] == [], path.name
        assert found.verdict is Verdict.PASS
        assert found.numbers
    for path in set(clean) - set(clean[::3]):  # the same without the slow start of our own check of the numbers
        found = scan(str(path), Request(base="none", with_data=False))
        assert [one for one in found.findings if one.severity is not Severity.NOTE] == [], path.name
    assert len({path.name.split("-", 1)[1] for path in clean}) == 30


def test_their_templates_are_really_rendered() -> None:
    for text in TEMPLATES[10::3]:
        prompts = scan_template(text, file="m.gguf", where="tokenizer.chat_template").prompts
        assert prompts
        assert len(prompts) >= 5


def test_with_the_engines_own_check(clean: list[Path], toolchain) -> None:  # type: ignore[no-untyped-def]
    assert library_of(toolchain) is not None
    found = scan(str(clean[3]), Request(base="none", tools=toolchain))
    assert found.findings == ()


def test_five_gigabytes_in_no_time(tmp_path: Path) -> None:
    n_rows = 5 * 1024**3 // (64 * 4)
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf(*MODEL_KEYS, tensors=(tensor("blk.0.ffn_up.weight", (64, n_rows)),)))
    os.truncate(path, path.stat().st_size + 5 * 1024**3)
    started, cpu = time.monotonic(), time.process_time()
    header, findings = read_structure(path)
    assert time.process_time() - cpu < 0.1
    assert time.monotonic() - started < 0.5
    assert header is not None
    assert findings == ()
