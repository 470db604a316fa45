"""Reads data/quality_prior.json, which scripts/fit_quality.py writes."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from quantplan.artifact.plan_file import Quality
from quantplan.places import data_file
from quantplan.quant.quality import Family, QualityTable, Recipe

SCHEMA = "quantplan/quality-prior/1"


@cache
def read_quality_table() -> QualityTable:
    """The table that ships with quantplan."""
    return table_from_json(json.loads(data_file("quality_prior.json").read_text(encoding="utf-8")))


def table_from_json(told: dict[str, Any]) -> QualityTable:
    """A table from its JSON. Raises ValueError for another schema."""
    if told["schema"] != SCHEMA:
        raise ValueError(f"schema {told['schema']!r}, expected {SCHEMA!r}")
    recipes = [Recipe(**row) for row in told["recipes"]]
    return QualityTable(
        recipes={(recipe.preset, recipe.with_imatrix): recipe for recipe in recipes},
        fixed={name: Quality(**row) for name, row in told["fixed"].items()},
        families=tuple(
            Family(
                name=row["name"], pattern=re.compile(row["pattern"], re.IGNORECASE), archs=frozenset(row["archs"]),
                offset=row["offset"], n_models=row["n_models"],
            )
            for row in told["families"]
        ),
        **told["model"],
        source=told["source"],
    )  # fmt: skip
