"""The quality prior: exact values of a small table, the shipped table's order and ranges, our own measurements."""

from __future__ import annotations

import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.artifact.plan_file import Quality
from quantplan.quant.preset_table import PRESETS
from quantplan.quant.quality import (
    Family,
    OwnMeasurement,
    QualityTable,
    Recipe,
    expected_quality,
    family_of,
    quality_rank,
)
from quantplan.quant.quality_table import read_quality_table, table_from_json
from quantplan.quant.uses import Use, quality_flags

ROOT = Path(__file__).resolve().parent.parent.parent


def recipe(preset: str, kld: float, *, with_imatrix: bool = False, slope: float = 1.0) -> Recipe:
    return Recipe(preset=preset, with_imatrix=with_imatrix, log_kld=math.log(kld), slope=slope, basis=f"{preset} told")


TABLE = QualityTable(
    reference_size=8e9, exponent=-0.5, routing_floor=0.002,
    recipes={
        ("Q4_K_M", False): recipe("Q4_K_M", 0.04), ("Q4_K_M", True): recipe("Q4_K_M", 0.03, with_imatrix=True),
        ("Q2_K", False): recipe("Q2_K", 0.5, slope=2.0), ("IQ2_XS", True): recipe("IQ2_XS", 0.4, with_imatrix=True),
    },
    fixed={"BF16": Quality(kld_mean=0.0, ppl_ratio=1.0, low=0.0, high=0.0, origin="16 bit is the reference")},
    families=(Family(name="Sturdy", pattern=re.compile("sturdy", re.I), archs=frozenset({"sturdy"}),
                     offset=-math.log(2), n_models=3),),
    ppl_factor=1.0, ppl_power=1.0, sd_recipe=0.3, sd_known_family=0.4, sd_new_family=1.2, source="a test",
)  # fmt: skip


def ask(quant: str, n_params: int = 8_000_000_000, **rest: object) -> Quality | None:
    told = {"family": None, "arch": None, "table": TABLE, **rest}
    return expected_quality(quant, n_params=n_params, **told)  # type: ignore[arg-type]


def test_a_model_of_the_reference_size_is_the_level_and_its_range() -> None:
    width = 1.2816 * math.hypot(1.2, 0.3)
    assert ask("Q4_K_M") == Quality(
        kld_mean=0.04, ppl_ratio=round(math.exp(0.04), 5), low=float(f"{0.04 / math.exp(width):.3g}"),
        high=float(f"{0.04 * math.exp(width):.3g}"),
        origin="expected: Q4_K_M told; no model of its family was published: a wider range; a test",
    )  # fmt: skip


def test_four_times_the_size_halves_the_damage_at_the_exponent_of_minus_a_half() -> None:
    assert ask("Q4_K_M", 32_000_000_000).kld_mean == 0.02  # type: ignore[union-attr]
    assert ask("Q2_K", 32_000_000_000).kld_mean == 0.125  # type: ignore[union-attr]  # its slope is 2


def test_a_family_shifts_by_name_or_architecture_and_narrows_the_range() -> None:
    by_name, by_arch = ask("Q4_K_M", family="Sturdy"), ask("Q4_K_M", arch="sturdy")
    assert by_name == by_arch
    assert by_name is not None
    assert by_name.kld_mean == 0.02
    assert by_name.high == float(f"{0.02 * math.exp(1.2816 * 0.5):.3g}")
    assert "family Sturdy" in by_name.origin


def test_a_mixture_counts_its_geometric_mean_and_has_a_floor() -> None:
    # √(32e9 × 2e9) = 8e9: as a dense 8B, and the routing floor on top
    assert ask("Q4_K_M", 32_000_000_000, n_active=2_000_000_000).kld_mean == 0.042  # type: ignore[union-attr]


def test_a_preset_that_needs_an_imatrix_is_taken_with_one() -> None:
    assert ask("IQ2_XS").kld_mean == 0.4  # type: ignore[union-attr]
    assert ask("IQ2_XS", with_imatrix=False) is None
    assert ask("Q4_K_M", with_imatrix=True).kld_mean == 0.03  # type: ignore[union-attr]


def test_unknown_is_none_and_sixteen_bit_is_the_reference() -> None:
    assert ask("TQ1_0") is None
    assert ask("BF16") == TABLE.fixed["BF16"]
    assert (quality_rank("TQ1_0", TABLE), quality_rank("BF16", TABLE)) == (None, 0.0)


def own(**change: object) -> OwnMeasurement:
    told = {
        "model": "m", "quant": "Q4_K_M", "with_imatrix": False, "n_params": 8_000_000_000, "n_active": None,
        "kld_mean": 0.08, "ppl_ratio": 1.07, "low": 0.07, "high": 0.09, "made_at": "2026-11-22", "same_model": True,
        **change,
    }  # fmt: skip
    return OwnMeasurement(**told)  # type: ignore[arg-type]


def test_a_measurement_of_this_very_preset_and_model_is_the_answer() -> None:
    assert ask("Q4_K_M", measured=(own(),)) == Quality(
        kld_mean=0.08, ppl_ratio=1.07, low=0.07, high=0.09, origin="measured here on this model, 2026-11-22"
    )


def test_another_preset_of_this_model_moves_the_expectation_towards_what_was_measured() -> None:
    found, before = ask("Q2_K", measured=(own(),)), ask("Q2_K")
    assert found is not None and before is not None
    # twice the expectation was measured; the shift is log 2 × (1/0.3²) / (1/0.3² + 1/1.2²)
    share = (1 / 0.3**2) / (1 / 0.3**2 + 1 / 1.2**2)
    assert found.kld_mean == float(f"{0.5 * 2**share:.3g}")
    assert found.high / found.low < before.high / before.low  # type: ignore[operator]
    assert "moved by 1 measurement(s) made here" in found.origin


def test_a_sibling_moves_less_than_the_model_itself_and_the_same_preset_more_than_another() -> None:
    def kld(quant: str, **change: object) -> float:
        found = ask(quant, measured=(own(**change),))
        assert found is not None and found.kld_mean is not None
        return found.kld_mean / ask(quant).kld_mean  # type: ignore[union-attr,operator]

    sibling_same, sibling_other = kld("Q4_K_M", same_model=False), kld("Q2_K", same_model=False)
    assert 1 < sibling_other < sibling_same < 2
    assert sibling_other < kld("Q2_K")


@settings(deadline=None)
@given(st.floats(2e8, 1.5e12), st.sampled_from(sorted({r.preset for r in read_quality_table().recipes.values()})))
def test_a_range_holds_its_value_and_larger_models_lose_less(n_params: float, quant: str) -> None:
    table = read_quality_table()
    small, large = (
        expected_quality(quant, n_params=int(n), family=None, arch=None, table=table) for n in (n_params, 2 * n_params)
    )
    assert small is not None and large is not None
    assert small.low < small.kld_mean < small.high  # type: ignore[operator]
    assert large.kld_mean < small.kld_mean  # type: ignore[operator]
    assert small.ppl_ratio > 1  # type: ignore[operator]


def test_presets_are_ordered_as_their_recipes_are() -> None:
    table = read_quality_table()
    chain = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "BF16")
    for with_imatrix in (False, True):
        ranks = [quality_rank(quant, table, with_imatrix=with_imatrix) for quant in chain]
        assert all(worse >= better for worse, better in pairwise(ranks))  # type: ignore[operator]


def test_every_preset_is_covered_or_known_to_be_not() -> None:
    table = read_quality_table()
    uncovered = {name for name, p in PRESETS.items() if quality_rank(p.file_type, table) is None}
    assert uncovered == {"Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE"}


@pytest.mark.parametrize(
    ("quant", "model", "n_params", "n_active", "published"),
    [  # figures of the two texts that the rows were measured on
        ("Q4_K_M", "Llama-3-8B", 8.03e9, None, 0.0313),
        ("Q8_0", "Llama-3-8B", 8.03e9, None, 0.00136),
        ("Q6_K", "Qwen3.5-27B", 27e9, None, 0.0015),
        ("Q8_0", "Qwen3.5-35B-A3B", 35e9, 3e9, 0.0037),
    ],
)
def test_published_figures_lie_in_the_range(
    quant: str, model: str, n_params: float, n_active: float | None, published: float
) -> None:
    table = read_quality_table()
    found = expected_quality(
        quant, n_params=int(n_params), n_active=int(n_active) if n_active else None,
        family=family_of(model, table), arch=None, table=table,
    )  # fmt: skip
    assert found is not None
    assert found.low < published < found.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3"), ("meta-llama/Meta-Llama-3-8B", "Llama-3"),
        ("Llama-2-7b-hf", "Llama-2"), ("Qwen/Qwen3-8B", "Qwen3"), ("Qwen/Qwen3.5-27B", "Qwen3.5"),
        ("Qwen/Qwen2.5-7B", None), ("zai-org/GLM-4.7-Flash", "GLM-4.7-Flash"), ("zai-org/GLM-4.5-Air", "GLM-4.5"),
        ("google/gemma-2-9b-it", "Gemma-2"), ("google/gemma-3-12b-it", None), ("mistralai/Mistral-7B-v0.3", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None),
    ],
)  # fmt: skip
def test_families_by_name(name: str, family: str | None) -> None:
    assert family_of(name, read_quality_table()) == family


@pytest.mark.parametrize(
    ("quant", "use", "advised"),
    [
        ("Q8_0", Use.CODE, None), ("Q5_K_M", Use.AGENTS, None), ("Q4_K_M", Use.CODE, True), ("Q4_K", Use.CODE, True),
        ("Q4_K_S", Use.REASONING, False), ("IQ4_XS", Use.AGENTS, False), ("IQ4_XS", Use.GENERAL, None),
        ("Q4_K_M", Use.GENERAL, None), ("Q3_K_M", Use.GENERAL, False), ("Q2_K", Use.CLASSIFICATION, True),
        ("IQ2_XXS", Use.CODE, False), ("TQ1_0", Use.GENERAL, False), ("MXFP4_MOE", Use.CODE, None),
    ],
)  # fmt: skip
def test_flags_by_use(quant: str, use: Use, advised: bool | None) -> None:
    flags = quality_flags(quant, use=use)
    assert [flag.advised for flag in flags] == ([] if advised is None else [advised])
    assert all(len(flag.why) > 40 for flag in flags)


def test_every_preset_below_four_bits_is_flagged_for_every_use() -> None:
    low = [name for name in PRESETS if name.startswith(("Q2", "Q3", "IQ1", "IQ2", "IQ3"))]
    assert len(low) == 17
    assert all(quality_flags(name, use=use) for name in low for use in Use)


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="quality-prior/9"):
        table_from_json({"schema": "quantplan/quality-prior/9"})


def test_the_shipped_table_is_what_the_rows_give(shared: Path) -> None:
    """The fit again, from the published rows (without the cross-validation, which scripts/fit_quality.py does)."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import fit_quality
    finally:
        sys.path.pop(0)
    rows, _ = fit_quality.read_rows(shared / "facts" / "quant_quality.csv")
    fitted, table = fit_quality.fit(rows), read_quality_table()
    assert len(rows) == 662
    assert fitted.exponent == pytest.approx(table.exponent, abs=2e-4)
    assert {f.name: f.offset for f in table.families} == pytest.approx(fitted.family, abs=1e-3)
    shipped = {(r["preset"], r["with_imatrix"]): r["log_kld"] for r in fit_quality.recipes(rows, fitted)}
    assert {key: r.log_kld for key, r in table.recipes.items()} == pytest.approx(shipped, abs=1e-3)


@pytest.mark.parametrize(("model", "factor"), [("Qwen3.5-9B", 1.6), ("GLM-4.5", 1.6), ("LLaMA-3-8B (base)", 2.2)])
def test_a_model_left_out_is_predicted(shared: Path, model: str, factor: float) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import fit_quality
    finally:
        sys.path.pop(0)
    rows, _ = fit_quality.read_rows(shared / "facts" / "quant_quality.csv")
    fitted = fit_quality.fit([row for row in rows if row.model != model])
    held = [row for row in rows if row.model == model and row.text in ("wikitext", "calibration")]
    errors = sorted(abs(row.y - p) for row in held if (p := fitted.predict(row)) is not None)
    assert len(errors) >= 10
    assert math.exp(errors[len(errors) // 2]) < factor
