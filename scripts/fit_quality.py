"""Fits data/quality_prior.json to the published rows, and says how well it holds for models left out.

    python scripts/fit_quality.py ../shared/facts/quant_quality.csv            writes the table and docs/quality.md's
    python scripts/fit_quality.py ../shared/facts/quant_quality.csv --check    exit 1 where they differ

One model of all rows (quantplan/quant/quality.py says it), by Gauss-Newton with Huber weights; families and models
are pulled towards 0 (ridge), so that a family seen once does not become a fact.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from quality_rows import FAMILIES, Row, read_rows, size_of

REFERENCE = 8e9
TEXTS = ("calibration", "ppl", "five domains")  # against wikitext
PIVOT = math.log(0.03)  # Q4: here the slope is 1
SD_FAMILY, SD_MODEL, SD_ROW, SD_TEXT = 0.7, 0.2, 0.25, (0.3, 0.3, 1.0)
FLOOR = 0.002  # start of the routing floor
MIXTURE = 0.9  # active below this share: a mixture of experts
ROUNDS = 120

# Damage falls along each chain by construction: every preset gives each tensor at least the bits of the one before.
CHAINS = (
    ("Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_XS",
     "IQ4_NL"),
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
)  # fmt: skip
GAIN_OF = (("IQ4_NL", "IQ4_XS"), ("IQ3_M", "Q3_K_M"), ("IQ3_S", "Q3_K_M"))  # without an imatrix: nobody published it
NO_GAIN = ("Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")  # nobody published what an imatrix gains here


@dataclass
class Fit:
    level: dict[tuple[str, bool, bool], float]
    family: dict[str, float]
    model: dict[str, float]
    text: dict[str, float]
    exponent: float
    slope: float
    floor: float

    def predict(self, row: Row) -> float | None:
        """log KLD of a row's recipe for its size and family, the model itself unseen."""
        if row.recipe not in self.level:
            return None
        level = self.level[row.recipe]
        term = self.exponent * log_size(row.model) + self.family.get(row.family, 0.0)
        damage = math.exp(level + self.slope_of(level) * term + self.text.get(row.text, 0.0))
        return math.log(damage + self.floor * is_mixture(row.model))

    def slope_of(self, level: float) -> float:
        return 1 + self.slope * (level - PIVOT)


def log_size(model: str) -> float:
    total, active = size_of(model) or (REFERENCE, REFERENCE)
    return math.log(math.sqrt(total * active) / REFERENCE)


def is_mixture(model: str) -> bool:
    total, active = size_of(model) or (1, 1)
    return active < MIXTURE * total


def fit(rows: list[Row]) -> Fit:
    """The parameters, in one vector: levels | exponent, slope, log floor | families | models | texts."""
    recipes = sorted({row.recipe for row in rows})
    families, models = sorted({row.family for row in rows}), sorted({row.model for row in rows})
    n_r, n_f, n_m = len(recipes), len(families), len(models)
    cut = np.cumsum([n_r, 3, n_f, n_m])
    i_r = np.array([recipes.index(row.recipe) for row in rows])
    i_f = np.array([families.index(row.family) for row in rows])
    i_m = np.array([models.index(row.model) for row in rows])
    size = np.array([log_size(row.model) for row in rows])
    mixture = np.array([float(is_mixture(row.model)) for row in rows])
    text = np.array([[float(row.text == name) for name in TEXTS] for row in rows])
    y, sd = np.array([row.y for row in rows]), np.hypot(SD_ROW, [row.noise for row in rows])
    prior = np.concatenate(
        [np.full(n_r, 1e-3), [1e-3, 100.0, 1.0], np.full(n_f, SD_FAMILY**-2), np.full(n_m, SD_MODEL**-2)]
    )
    prior = np.concatenate([prior, np.array(SD_TEXT) ** -2.0])
    start = np.concatenate(
        [[y[i_r == i].mean() for i in range(n_r)], [-0.4, 0.0, math.log(FLOOR)], np.zeros(n_f + n_m + len(TEXTS))]
    )
    centre = np.concatenate([np.full(n_r, y.mean()), [0, 0, math.log(FLOOR)], np.zeros(n_f + n_m + len(TEXTS))])
    p, n = start.copy(), np.arange(len(rows))
    for _ in range(ROUNDS):
        level, exponent, slope, floor = p[:n_r][i_r], p[n_r], p[n_r + 1], math.exp(p[n_r + 2]) * mixture
        term = exponent * size + p[cut[1] : cut[2]][i_f] + p[cut[2] : cut[3]][i_m]
        steep = 1 + slope * (level - PIVOT)
        damage = np.exp(level + steep * term + text @ p[cut[3] :])
        error = y - np.log(damage + floor)
        weight = sd**-2 / np.sqrt(1 + (error / sd / 2) ** 2)
        jacobian = np.zeros((len(rows), len(p)))
        jacobian[n, i_r] = 1 + slope * term
        jacobian[:, n_r], jacobian[:, n_r + 1] = steep * size, (level - PIVOT) * term
        jacobian[n, cut[1] + i_f], jacobian[n, cut[2] + i_m] = steep, steep
        jacobian[:, cut[3] :] = text
        jacobian *= (damage / (damage + floor))[:, None]
        jacobian[:, n_r + 2] = floor / (damage + floor)
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(prior)
        step = np.linalg.solve(hessian, jacobian.T @ (weight * error) - prior * (p - centre))
        p += 0.7 * step
        if np.abs(step).max() < 1e-7:
            break
    return Fit(
        level=dict(zip(recipes, map(float, p[:n_r]), strict=True)),
        family=dict(zip(families, map(float, p[cut[1] : cut[2]]), strict=True)),
        model=dict(zip(models, map(float, p[cut[2] : cut[3]]), strict=True)),
        text=dict(zip(TEXTS, map(float, p[cut[3] :]), strict=True)),
        exponent=float(p[n_r]), slope=float(p[n_r + 1]), floor=float(math.exp(p[n_r + 2])),
    )  # fmt: skip


def left_out(rows: list[Row], by: str) -> list[tuple[Row, float]]:
    """Every divergence on ordinary text with the prediction of a fit that never saw its model (or family)."""
    held = [row for row in rows if row.text in ("wikitext", "calibration")]
    found = []
    for name in sorted({getattr(row, by) for row in held}):
        fitted = fit([row for row in rows if getattr(row, by) != name])
        for row in held:
            predicted = fitted.predict(row) if getattr(row, by) == name else None
            if predicted is not None:
                found.append((row, predicted))
    return found


def quantile(pairs: list[tuple[Row, float]], share: float) -> float:
    """Quantile of |error of log KLD|, each model counting the same."""
    counts: dict[str, int] = {}
    for row, _ in pairs:
        counts[row.model] = counts.get(row.model, 0) + 1
    errors = sorted((abs(row.y - predicted), 1 / counts[row.model]) for row, predicted in pairs)
    total, seen = sum(weight for _, weight in errors), 0.0
    for error, weight in errors:
        seen += weight
        if seen >= share * total:
            return error
    return errors[-1][0]


def within_models(pairs: list[tuple[Row, float]]) -> float:
    """What is left inside a model when its own mean error is taken off: the recipe's spread (80 % quantile / 1.28)."""
    means = {}
    for name in {row.model for row, _ in pairs}:
        means[name] = float(np.median([row.y - p for row, p in pairs if row.model == name]))
    inner = [(row, predicted + means[row.model]) for row, predicted in pairs]
    return quantile(inner, 0.8) / 1.2816


def isotone(levels: dict[tuple[str, bool], float]) -> dict[tuple[str, bool], float]:
    """Levels that never rise along a chain, and no higher with an imatrix than without: neighbours are averaged."""
    told = dict(levels)
    for _ in range(200):
        before = dict(told)
        for chain in CHAINS:
            for with_imatrix in (False, True):
                names = [(name, with_imatrix) for name in chain if (name, with_imatrix) in told]
                for worse, better in pairwise(names):
                    _order(told, worse, better)
        for name, with_imatrix in list(told):
            if with_imatrix and (name, False) in told:
                _order(told, (name, False), (name, True))
        if all(abs(told[key] - before[key]) < 1e-9 for key in told):
            break
    return told


def _order(told: dict[tuple[str, bool], float], worse: tuple[str, bool], better: tuple[str, bool]) -> None:
    if told[better] > told[worse]:
        told[better] = told[worse] = (told[better] + told[worse]) / 2


def recipes(rows: list[Row], fitted: Fit) -> list[dict[str, Any]]:
    """The table's rows: measured levels, ordered; and those that are taken from a neighbour, saying so."""
    levels = {(name, imatrix): level for (name, imatrix, pure), level in fitted.level.items() if not pure}
    levels = {key: level for key, level in levels.items() if not (key[1] and key[0] in NO_GAIN)}
    told = isotone(levels)
    out = []
    for (name, imatrix), level in sorted(told.items()):
        own = [row for row in rows if row.recipe == (name, imatrix, False)]
        n_kld, n_all = len({r.model for r in own if r.text != "ppl"}), len({r.model for r in own})
        how = "with" if imatrix else "without"
        basis = f"{name} {how} an importance matrix was published for {n_all} model(s), "
        basis += f"for {n_kld} of them as KL divergence" if n_kld else "as perplexity only"
        out.append(_recipe(name, imatrix, level, fitted, basis))
    for name in NO_GAIN:
        basis = f"{name} with an importance matrix is taken as without: nobody published what it gains"
        out.append(_recipe(name, True, told[name, False], fitted, basis))
    for name, like in GAIN_OF:
        level = told[name, True] + told[like, False] - told[like, True]
        basis = f"{name} without an importance matrix is interpolated: it is taken to lose as much as {like} does"
        out.append(_recipe(name, False, level, fitted, basis))
    return sorted(out, key=lambda row: (row["log_kld"], row["preset"], row["with_imatrix"]))


def _recipe(name: str, imatrix: bool, level: float, fitted: Fit, basis: str) -> dict[str, Any]:
    return {"preset": name, "with_imatrix": imatrix, "log_kld": round(level, 4),
            "slope": round(fitted.slope_of(level), 4), "basis": basis}  # fmt: skip


def perplexity(path: Path) -> tuple[float, float, float, int]:
    """log(PPL ratio) = factor × KLD^power, over rows that have both on one text: factor, power, median factor of
    error, rows."""
    import csv

    pairs = []
    with path.open(encoding="utf-8") as file:
        for one in csv.DictReader(file):
            if one["kld_mean"] and one["ppl"] and one["ppl_delta"] and 0.003 < float(one["kld_mean"]) < 3:
                ppl, delta = float(one["ppl"]), float(one["ppl_delta"])
                if delta > 0:
                    pairs.append((math.log(float(one["kld_mean"])), math.log(math.log(ppl / (ppl - delta)))))
    x, y = np.array(pairs).T
    power, factor = np.polyfit(x, y, 1)
    error = float(np.median(np.abs(y - power * x - factor)))
    return math.exp(factor), float(power), math.exp(error), len(pairs)


def table(path: Path) -> dict[str, Any]:
    """Everything that ships."""
    rows, excluded = read_rows(path)
    fitted = fit(rows)
    by_model, by_family = left_out(rows, "model"), left_out(rows, "family")
    others = {name: len({r.model for r in rows if r.family == name}) for name in fitted.family}
    kin = [pair for pair in by_model if others[pair[0].family] > 1]
    inner = within_models(kin)
    known, new = quantile(kin, 0.8) / 1.2816, quantile(by_family, 0.8) / 1.2816
    factor, power, ppl_error, n_ppl = perplexity(path)
    return {
        "schema": "quantplan/quality-prior/1",
        "source": "published measurements, 2023 to 2026 (docs/quality.md)",
        "model": {
            "reference_size": REFERENCE, "exponent": round(fitted.exponent, 4), "routing_floor": round(fitted.floor, 5),
            "ppl_factor": round(factor, 4), "ppl_power": round(power, 4), "sd_recipe": round(inner, 4),
            "sd_known_family": round(math.sqrt(max(known**2 - inner**2, 0.01)), 4),
            "sd_new_family": round(math.sqrt(max(new**2 - inner**2, 0.01)), 4),
        },
        "families": [
            {"name": name, "pattern": pattern, "archs": list(archs), "offset": round(fitted.family[name], 4),
             "n_models": others[name]}
            for name, pattern, archs in FAMILIES
        ],
        "recipes": recipes(rows, fitted),
        "fixed": fixed(path),
        "fit": {
            "rows": len(rows), "models": len({row.model for row in rows}), "left_out": excluded,
            "texts": {name: round(value, 3) for name, value in fitted.text.items()},
            "known_family": errors_of(kin, known), "new_family": errors_of(by_family, new),
            "perplexity": {"rows": n_ppl, "median_factor": round(ppl_error, 3)},
        },
        "urls": sorted({row.url for row in rows}),
    }  # fmt: skip


def errors_of(pairs: list[tuple[Row, float]], sd: float) -> dict[str, Any]:
    """How far predictions of left-out models were off, as factors; each model counts the same."""
    inside = {}
    for row, predicted in pairs:
        inside.setdefault(row.model, []).append(abs(row.y - predicted) <= 1.2816 * sd)
    covered = float(np.mean([np.mean(each) for each in inside.values()]))
    named = {f"p{int(100 * share)}": round(math.exp(quantile(pairs, share)), 2) for share in (0.5, 0.8, 0.9)}
    return {"rows": len(pairs), "models": len(inside), **named, "inside_the_range": round(covered, 3)}


def fixed(path: Path) -> dict[str, dict[str, Any]]:
    """16 and 32 bit. F16 of a BF16 checkpoint: the published rows of that very comparison."""
    exact = {"kld_mean": 0.0, "ppl_ratio": 1.0, "low": 0.0, "high": 0.0}
    text = path.read_text(encoding="utf-8")
    klds = [
        float(k)
        for k in re.findall(r"LLaMA-3-8B \(base\),(?:f16|F16 vs BF16 base),[^,]*,[^,]*,[^,]*,[^,]*,([^,]+),", text)
    ]
    why = (
        f"published for LLaMA-3-8B: {min(klds):g} (F16 against BF16 on a CPU) and {max(klds):g} (on a GPU); "
        "weights outside F16's range cost more: Qwen3-4B lost 1.4 % of perplexity"
    )
    return {
        "BF16": {**exact, "origin": "16 bit is the reference"},
        "F32": {**exact, "origin": "holds every 16-bit weight exactly"},
        "F16": {"kld_mean": max(klds), "ppl_ratio": None, "low": min(klds), "high": 0.014, "origin": why},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    target = ROOT / "data" / "quality_prior.json"
    text = json.dumps(table(given.rows), indent=1) + "\n"
    if given.check:
        same = target.read_text(encoding="utf-8") == text
        print("as written" if same else "differs from data/quality_prior.json")
        return 0 if same else 1
    target.write_text(text, encoding="utf-8")
    print(json.dumps(json.loads(text)["fit"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
