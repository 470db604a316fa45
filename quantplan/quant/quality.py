"""What a preset costs in quality: expected from published measurements, replaced by our own where there are some.

Pure: the table and our own measurements come in as arguments (`quality_table.read_quality_table`,
`artifact.measured.own_measurements`). The damage of a recipe (a preset, with or without an importance matrix) is

    log d = level(recipe) + slope(recipe) × (exponent × log(size / reference) + offset(family))
    KLD   = d + routing floor (mixtures of experts only: any change of a weight sends some tokens to other experts)

with size = √(parameters × active parameters). docs/quality.md shows how well that holds for models left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Quality

BAND = 1.2816  # standard deviations that enclose four of five
_SAME = 0.05  # log KLD: a preset measured on this very model, another text


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a preset behaves over models. `log_kld` is of a dense model of the reference size, family unknown;
    `basis` says measured on how many models, or how it was interpolated."""

    preset: str
    with_imatrix: bool
    log_kld: float
    slope: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family whose models are damaged more or less than others of their size (offset of log KLD at slope 1)."""

    name: str
    pattern: re.Pattern[str]
    archs: frozenset[str]
    offset: float
    n_models: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTable:
    """data/quality_prior.json. The sd_ are of log KLD, from models left out of the fit."""

    reference_size: float
    exponent: float
    routing_floor: float
    recipes: Mapping[tuple[str, bool], Recipe]
    fixed: Mapping[str, Quality]  # 16 and 32 bit: no model of size
    families: tuple[Family, ...]
    ppl_factor: float
    ppl_power: float
    sd_recipe: float
    sd_known_family: float
    sd_new_family: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMeasurement:
    """A preset that was measured here, on this very model or on a sibling (a model of its family)."""

    model: str
    quant: str
    with_imatrix: bool
    n_params: int
    n_active: int | None
    kld_mean: float
    ppl_ratio: float | None
    low: float | None
    high: float | None
    made_at: str
    same_model: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What the prior sees of a model: its term (log size and family), its floor, how sure that is."""

    term: float
    floor: float
    sd: float
    family: str | None


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
    """Mean KL divergence (nats a token) and perplexity ratio against 16 bit; low and high of the KLD enclose four
    models of five. None when nothing is known of the preset.

    `family` is `family_of`'s answer. `with_imatrix` None: only where the preset cannot be made without. `measured`
    are our own: of this very preset and model they are the answer, others shift the expectation and narrow it.
    """
    if quant in table.fixed:
        return table.fixed[quant]
    own = next((m for m in measured if m.same_model and _is(m, quant, with_imatrix)), None)
    if own is not None:
        why = f"measured here on this model, {own.made_at}"
        return Quality(kld_mean=own.kld_mean, ppl_ratio=own.ppl_ratio, low=own.low, high=own.high, origin=why)
    recipe = recipe_of(quant, table, with_imatrix=with_imatrix)
    if recipe is None:
        return None
    model = _model(table, n_params, n_active, family, arch)
    shift, sd, n_own = _shift(recipe, model, table, measured, (family, arch))
    width = BAND * math.hypot(sd, table.sd_recipe)
    kld = _kld(recipe, model, shift)
    about = f"family {model.family}" if model.family else "no model of its family was published: a wider range"
    here = f", moved by {n_own} measurement(s) made here" if n_own else ""
    return Quality(
        kld_mean=_rounded(kld),
        ppl_ratio=round(math.exp(table.ppl_factor * kld**table.ppl_power), 5),
        low=_rounded(kld / math.exp(width)),
        high=_rounded(kld * math.exp(width)),
        origin=f"expected{here}: {recipe.basis}; {about}; {table.source}",
    )


def recipe_of(quant: str, table: QualityTable, *, with_imatrix: bool | None = None) -> Recipe | None:
    """The recipe of a preset; `with_imatrix` None takes the one without where there is one."""
    if with_imatrix is not None:
        return table.recipes.get((quant, with_imatrix))
    return table.recipes.get((quant, False)) or table.recipes.get((quant, True))


def quality_rank(quant: str, table: QualityTable, *, with_imatrix: bool | None = None) -> float | None:
    """An order of presets, the best lowest: the KLD of a dense model of the reference size. None where unknown."""
    if quant in table.fixed:
        return 0.0
    recipe = recipe_of(quant, table, with_imatrix=with_imatrix)
    return math.exp(recipe.log_kld) if recipe else None


def family_of(name: str, table: QualityTable) -> str | None:
    """The table's family that a model's name belongs to, or None."""
    return next((family.name for family in table.families if family.pattern.search(name)), None)


def _is(own: OwnMeasurement, quant: str, with_imatrix: bool | None) -> bool:
    return own.quant == quant and with_imatrix in (None, own.with_imatrix)


def _model(table: QualityTable, n_params: int, n_active: int | None, family: str | None, arch: str | None) -> _Model:
    known = next((f for f in table.families if f.name == family), None)
    known = known or next((f for f in table.families if arch in f.archs), None)
    size = math.sqrt(n_params * (n_active or n_params))
    return _Model(
        term=table.exponent * math.log(size / table.reference_size) + (known.offset if known else 0.0),
        floor=table.routing_floor if n_active is not None and n_active < 0.9 * n_params else 0.0,
        sd=table.sd_known_family if known else table.sd_new_family,
        family=known.name if known else None,
    )


def _kld(recipe: Recipe, model: _Model, shift: float) -> float:
    return math.exp(recipe.log_kld + recipe.slope * model.term + shift) + model.floor


def _shift(
    recipe: Recipe, model: _Model, table: QualityTable, measured: Sequence[OwnMeasurement],
    kin: tuple[str | None, str | None],
) -> tuple[float, float, int]:  # fmt: skip
    """How far our own measurements move log KLD, what is left of the model's spread, and how many there were.

    Each tells the model's deviation with its own variance: small on this very model, a sibling's spread otherwise;
    none for the recipe where it is the same one.
    """
    weight, total, n = model.sd**-2, 0.0, 0
    for own in measured:
        theirs = recipe_of(own.quant, table, with_imatrix=own.with_imatrix)
        if theirs is None or own.kld_mean <= 0:
            continue
        seen = _model(table, own.n_params, own.n_active, *kin)
        deviation = math.log(max(own.kld_mean - seen.floor, own.kld_mean / 10)) - math.log(
            _kld(theirs, seen, 0) - seen.floor
        )
        of_recipe = _SAME if theirs.preset == recipe.preset else table.sd_recipe
        of_model = 0.0 if own.same_model else table.sd_known_family
        precision = 1 / (of_recipe**2 + of_model**2)
        weight, total, n = weight + precision, total + precision * deviation, n + 1
    return total / weight, weight**-0.5, n


def _rounded(value: float) -> float:
    """Three digits: more would look measured."""
    return float(f"{value:.3g}")
