"""The short version of scripts/operating_characteristic.py, and the kept long one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from quantplan.artifact.results import Verdict
from quantplan.pipeline.logits import TokenScores, take
from quantplan.pipeline.policy import load_policy
from quantplan.pipeline.saved import SavedScores, decide

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "tests" / "data" / "gate"
KEPT = ROOT / "docs" / "operating-characteristic.json"
RUNS = 60


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oc", ROOT / "scripts" / "operating_characteristic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["oc"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def share(rows: list[dict[str, float]], times: float, kind: str) -> float:
    return next(row[kind] for row in rows if row["times"] == times)


@pytest.mark.parametrize(
    ("name", "metric"),
    [("bundled chat", "kld_mean"), ("bundled sums", "kld_99"), ("bundled code", "top_changed"),
     ("bundled prose", "ln_ppl_ratio"), ("log-normal 2.5", "kld_mean"), ("Pareto 1.5", "kld_mean")],
)  # fmt: skip
def test_half_and_twice_the_limit(script: Any, name: str, metric: str) -> None:
    """60 runs: no error of a verdict at all, and at most a fifth without one. The bars themselves are held by the
    kept figures."""
    draw, truths = next((d, t) for n, d, t in script.populations(SAVED, seed=1) if n == name and metric in t)
    rows = script.characteristic(draw, {metric: truths[metric]}, RUNS)[metric]
    assert share(rows, 0.5, "fail") == share(rows, 2.0, "pass") == 0
    assert share(rows, 0.5, "inconclusive") <= 0.2
    assert share(rows, 2.0, "inconclusive") <= 0.2
    assert share(rows, 0.25, "pass") > 0.95
    assert share(rows, 4.0, "fail") > 0.95


def test_the_kept_figures_hold_the_bars(script: Any) -> None:
    """Wrong pass and wrong fail ≤ 1 %, inconclusive ≤ 5 % at half and twice the limit within 200 chunks; clear cases
    end with a third of the chunks or fewer."""
    kept = json.loads(KEPT.read_text())
    held = [one for one in kept if one["name"] not in script.BEYOND]
    assert {one["name"] for one in held} == {f"bundled {c}" for c in script.CORPORA} | set(script.SYNTHETIC)
    for one in held:
        assert one["runs"] >= 1000
        assert script.misses(one["rows"]) == [], (one["name"], one["metric"])
    bundled = [row for one in held if one["name"].startswith("bundled") for row in one["rows"]]
    for row in bundled:
        if row["times"] == 4.0:
            assert row["chunks"] <= 200 / 3
        if row["times"] == 0.25:
            assert row["chunks"] <= 200 / 3


def test_the_docs_show_the_kept_figures(script: Any) -> None:
    kept = json.loads(KEPT.read_text())
    assert script.table(kept) in (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    assert script.plot(kept) == (ROOT / "docs" / "operating-characteristic.svg").read_text(encoding="utf-8")


def test_500_permutations_of_the_saved_data(script: Any) -> None:
    """Chunks and texts in any order: one verdict, one reason, the same number of tokens."""
    data = {corpus: script.saved(corpus, SAVED) for corpus in script.CORPORA}
    keys = {
        corpus: [hashlib.sha256(row.tobytes()).hexdigest() for row in tokens.kld] for corpus, tokens in data.items()
    }
    policy = load_policy("standard")
    random = np.random.default_rng(1)
    found = set()
    for _ in range(500):
        saved = {}
        for corpus in random.permutation(script.CORPORA):
            order = list(random.permutation(len(keys[corpus])))
            saved[str(corpus)] = SavedScores(
                keys=[keys[corpus][i] for i in order], artifact=_moved(data[corpus], order)
            )  # fmt: skip
        judged = decide(saved, policy)
        found.add((judged.verdict, judged.reason, judged.n_tokens))
    ((verdict, _, n_tokens),) = found
    assert verdict is Verdict.PASS
    assert n_tokens == 5 * 20 * 255


def _moved(tokens: TokenScores, order: list[int]) -> TokenScores:
    return take(tokens, order)
