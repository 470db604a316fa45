"""Bytes flipped anywhere: our readers end with our errors, in no time, with no memory to speak of."""

from __future__ import annotations

import io
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hostile_gguf import model, string
from hostile_sources import gadget, safetensors, torch_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantplan.artifact.results import Finding
from quantplan.pipeline.scanning.metadata import metadata_findings
from quantplan.pipeline.scanning.pickles import scan_pickle_file
from quantplan.pipeline.scanning.structure import read_structure
from quantplan.pipeline.scanning.template_text import syntax_findings, text_findings
from quantplan.units import MIB

SOUND = model(string("tokenizer.chat_template", "{{ messages[-1].content }}"), string("general.author", "Fern"))
HEADER = len(SOUND) - 2048
FLIPS = st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=12)
QUIET = settings(max_examples=200, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip


@QUIET
@given(flips=FLIPS)
def test_headers(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    raw = bytearray(SOUND)
    for at, value in flips:
        raw[at] = value
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    started = time.process_time()
    header, found = read_structure(path)
    if header is not None:
        found += tuple(metadata_findings(header, path.name))
    assert time.process_time() - started < 1.0
    assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    tracemalloc.stop()
    assert all(isinstance(one, Finding) and one.rule.startswith("scan/") for one in found)
    assert header is not None or found


@QUIET
@given(raw=st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda tail: b"\x80\x04" + tail)))
def test_pickles_of_any_bytes(raw: bytes) -> None:
    list(scan_pickle_file(io.BytesIO(raw), "a.bin"))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_zips_pickles_and_safetensors(seed: int) -> None:
    chance = random.Random(seed)
    for sound in (
        torch_zip(gadget("os", "system")),
        gadget("os", "system", protocol=4),
        b"\x93NUMPY\x01\x00" + bytes(80),
    ):
        for _ in range(60):
            raw = bytearray(sound)
            for _ in range(chance.randint(1, 6)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            list(scan_pickle_file(io.BytesIO(bytes(raw)), "a.bin"))
    assert safetensors({})


@QUIET
@given(text=st.text(max_size=400))
def test_texts_of_any_kind(text: str) -> None:
    list(text_findings(text))
    list(syntax_findings(text))


def test_the_longest_text_takes_no_time() -> None:
    for piece in ("{{", "a ", "https://", " " * 50, "ignore all ", "\u202e", "A" * 60, "send it to "):
        text = piece * (200_000 // len(piece))
        started = time.process_time()
        list(text_findings(text))
        list(syntax_findings(text))
        assert time.process_time() - started < 2.0, piece
