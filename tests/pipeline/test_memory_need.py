"""What is foreseen of the tools' memory against what was measured of them."""

from __future__ import annotations

import csv

import pytest

from quantplan.model.facts import TensorFacts
from quantplan.model.read import read_model
from quantplan.pipeline.memory_need import _quantize_bytes, memory_steps
from quantplan.places import data_file
from quantplan.quant.presets import apply_preset
from quantplan.units import GIB

with data_file("tool_memory.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


@pytest.mark.parametrize("row", [row for row in ROWS if row["tool"] == "quantize"], ids=lambda row: row["model"])
def test_quantize_takes_no_more_than_foreseen_and_not_much_less(row: dict[str, str]) -> None:
    n, measured = int(row["largest_tensor_elements"]), int(row["anonymous_bytes"])
    source = TensorFacts(name="output.weight", shape=(1024, n // 1024), type_name="BF16")
    result = TensorFacts(name="output.weight", shape=(1024, n // 1024), type_name="Q6_K")
    foreseen = _quantize_bytes((source,), (result,))
    assert measured <= foreseen <= measured * 1.1


def test_the_buffers_of_quantize_have_a_limit() -> None:
    huge = (TensorFacts(name="output.weight", shape=(65_536, 1 << 20), type_name="BF16"),)
    made = (TensorFacts(name="output.weight", shape=(65_536, 1 << 20), type_name="Q8_0"),)
    assert 8 * GIB <= _quantize_bytes(huge, made) < 9 * GIB


def test_every_tool_of_a_build_has_its_peak() -> None:
    facts = read_model("quantplan-tiny")
    quants = [(name, apply_preset(facts.tensors, facts.metadata, name).tensors) for name in ("Q8_0", "Q4_K_M")]
    steps = {step.name: step for step in memory_steps(facts, quants, simd=frozenset({"avx2"}))}
    assert list(steps) == ["convert", "quantize Q8_0", "quantize Q4_K_M", "evaluate"]
    assert steps["convert"].need_bytes > 200 * 1024**2  # torch alone
    assert steps["evaluate"].mapped_bytes > 6_000_000
