"""What a preset costs in quality: expected from published measurements, replaced by our own where there are some.

Pure: the table and the own measurements come in as arguments (`quality_table.read_quality_table`,
`artifact.history.own_measurements`). The damage of a recipe (a preset, with or without an importance matrix) is

    log KLD = level(recipe) + slope(recipe) × (log(size / 8e9) × b + offset(family)),  size = √(parameters × active)

and docs/quality.md shows how well that holds for models left out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from quantplan.artifact.plan_file import Quality

LOSSLESS = frozenset({"F32", "BF16", "F16"})


class Use(Enum):
    """What a model is for, as far as the choice of a preset depends on it."""

    GENERAL = "general"
    CODE = "code"
    REASONING = "reasoning"
    AGENTS = "agents"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a preset behaves over models. `log_kld` is of a model of the reference size; `spread` is the standard
    deviation of log KLD between models of one size; `basis` says measured or interpolated, and from what."""

    preset: str
    with_imatrix: bool
    log_kld: float
    slope: float
    spread: float
    n_models: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTable:
    """data/quality_prior.json. `families` shift the model's term, by family name and by architecture."""

    reference_size: float
    size_exponent: float
    recipes: Mapping[tuple[str, bool], Recipe]
    families: Mapping[str, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMeasurement:
    """A preset that this host measured, on this very model or on a sibling (one family or architecture)."""

    model: str
    quant: str
    with_imatrix: bool
    n_params: int
    family: str | None
    arch: str | None
    kld_mean: float
    ppl_ratio: float | None
    low: float | None
    high: float | None
    made_at: str
    same_model: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A remark on a preset for a use, with its reason. `advised` is False where the preset should not be taken."""

    advised: bool
    why: str


def expected_quality(
    quant: str,
    *,
    n_params: int,
    family: str | None,
    arch: str | None,
    table: QualityTable,
    n_active: int | None = None,
    with_imatrix: bool | None = None,
    measured: Sequence[OwnMeasurement] = (),
) -> Quality | None:
    """Mean KL divergence and perplexity ratio to expect, low and high enclosing four models of five (of the KLD).

    `with_imatrix` None: only where the preset needs one. None when nothing is known of the preset.
    """
    recipe = _recipe(table, quant, with_imatrix)
    if recipe is None:
        return None
    size = math.sqrt(n_params * (n_active or n_params))
    offset = table.families.get(family or "", table.families.get(arch or "", 0.0))
    term = table.size_exponent * math.log(size / table.reference_size) + offset
    log_kld = recipe.log_kld + recipe.slope * term
    return Quality(
        kld_mean=math.exp(log_kld),
        ppl_ratio=None,
        low=math.exp(log_kld - 1.28 * recipe.spread),
        high=math.exp(log_kld + 1.28 * recipe.spread),
        origin=f"expected: {recipe.basis}; {table.source}",
    )


def _recipe(table: QualityTable, quant: str, with_imatrix: bool | None) -> Recipe | None:
    if with_imatrix is not None:
        return table.recipes.get((quant, with_imatrix))
    return table.recipes.get((quant, False)) or table.recipes.get((quant, True))


def family_of(model: str) -> str | None:
    """The family in a model's name, as the table names it ('Llama-3', 'Qwen3.5'), or None."""
    return None


def quality_flags(quant: str, *, use: Use = Use.GENERAL) -> tuple[Flag, ...]:
    """What speaks against a preset for a use, with reasons; empty when nothing does."""
    return ()
