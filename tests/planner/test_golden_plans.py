"""The worked cases of docs/plans.md: the choice and its memory to the byte."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("golden_plans", ROOT / "scripts" / "golden_plans.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_plans"] = module
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "golden_plans.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: case.title)
def test_golden(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of tables: python scripts/golden_plans.py, and read what changed."""
    monkeypatch.setenv("QUANTPLAN_STATE", str(tmp_path))
    plan = SCRIPT.planned(case)
    assert SCRIPT.golden(plan) == GOLDEN[case.title]
    docs = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    assert SCRIPT.row(case, plan) in docs


def test_what_an_expert_expects() -> None:
    """Beyond the numbers: what a user of llama.cpp would say of these machines."""
    by = {title: GOLDEN[title] for title in GOLDEN}
    whole = {"8B on a 12 GB RTX 4070 at 8k": 33, "8B on a 12 GB RTX 4070 at 32k": 33, "7B on 16 GB at 8k": 33,
             "13B on 12 GB, every layer on the card": 41, "13B over two 12 GB RTX 3060": 41}  # fmt: skip
    for title, layers in whole.items():
        assert by[title]["n_gpu_layers"] == layers, title
        assert by[title]["quant"] in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"), title
    assert len(by["13B over two 12 GB RTX 3060"]["tensor_split"]) == 2
    assert by["7B Q5_K_M on a 6 GB GTX 1060"]["quant"] == "Q5_K_M"
    assert by["7B Q5_K_M on a 6 GB GTX 1060"]["n_gpu_layers"] >= 25
    seventy = by["70B on a 24 GB RTX 4090 with 64 GB RAM"]
    assert (seventy["quant"], 35 <= seventy["n_gpu_layers"] <= 50) == ("Q4_K_M", True)
    mixture = by["30B-A3B on 8 GB, experts on the host"]
    assert mixture["n_gpu_layers"] == 49
    assert 30 <= mixture["n_cpu_moe"] <= 45
    assert by["8B on a CPU with 16 GB"]["memory"]["Host"] < 15 * 1024**3
