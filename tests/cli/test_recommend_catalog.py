"""recommend without a model: filters, bad input, kept plans, and that every number is what recommend MODEL says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantplan.cli.recommend_catalog import filtered
from quantplan.errors import NoModelLeft, UseWithoutData
from quantplan.model import catalog

ROOT = Path(__file__).resolve().parents[2]
MACHINE = "rtx4070+32GB"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", "recommend", *words], capture_output=True, text=True, cwd=ROOT,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "QUANTPLAN_CACHE": str(cache)},
    )  # fmt: skip


def data(*words: str, cache: Path) -> dict[str, Any]:
    done = run(*words, "--json", cache=cache)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)["data"]
    return told


def assert_same(row: dict[str, Any], single: dict[str, Any]) -> None:
    """One row of the ranking against the document of recommend MODEL."""
    ranked, plan, numbers = row["plan"], single["plan"], single["numbers"]
    for key in ("quant", "n_ctx_per_slot", "n_parallel", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe"):
        assert ranked[key] == plan[key], (row["id"], key)
    totals = {
        device["name"]: sum(device[part] for part in device if part in _PARTS) for device in plan["memory"]["devices"]
    }
    assert ranked["devices"] == totals, row["id"]
    for key in ("decode_tokens_per_s", "total_decode_tokens_per_s", "prefill_tokens_per_s", "first_token_s",
                "damage_nats", "worth"):  # fmt: skip
        assert ranked[key] == pytest.approx(numbers[key], rel=1e-12), (row["id"], key)  # sums end in another order
    if plan["quality"] is not None and plan["quality"]["kld_mean"] is not None:
        assert ranked["damage_nats"] == plan["quality"]["kld_mean"]


_PARTS = ("model_bytes", "context_bytes", "compute_bytes", "output_bytes", "overhead_bytes")


@pytest.mark.parametrize(
    ("use", "models", "options"),
    [
        ("chat", ("openai/gpt-oss-20b", "google/gemma-4-E4B-it", "LiquidAI/LFM2.5-8B-A1B"), ()),
        ("code", ("Qwen/Qwen3-Coder-30B-A3B-Instruct",), ("--min-ctx", "16384", "--hardware", "2x3090+64GB")),
        (
            "vision",
            ("Qwen/Qwen3-VL-8B-Instruct",),
            (
                "--kv",
                "q8_0",
            ),
        ),
        ("embedding", ("Qwen/Qwen3-Embedding-0.6B", "BAAI/bge-base-en"), ()),
    ],
)
def test_every_number_is_what_recommend_model_says(
    cache: Path, use: str, models: tuple[str, ...], options: tuple[str, ...]
) -> None:
    words = ("--use", use, *(options if "--hardware" in options else ("--hardware", MACHINE, *options)))
    names = [word for model in models for word in ("--family", model)]
    rows = {row["id"]: row for row in data(*words, *names, cache=cache)["models"]}
    for model in models:
        assert_same(rows[model], data(model, *words, cache=cache))


def test_models_that_share_a_plan_have_the_plan_that_each_has_alone(cache: Path) -> None:
    """Two models of one shape are planned once: the second is asked alone here."""
    words = ("--hardware", MACHINE)
    models = ("NousResearch/Hermes-3-Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3.1-8B", "Qwen/Qwen3-30B-A3B-Instruct-2507")
    names = [word for model in models for word in ("--family", model)]
    rows = {row["id"]: row for row in data(*words, *names, cache=cache)["models"]}
    for model in models:
        assert_same(rows[model], data(model, *words, cache=cache))


def test_the_best_comes_first_and_what_does_not_fit_is_told(cache: Path) -> None:
    names = ("--family", "deepseek", "--family", "gemma-3", "--family", "Llama-3.2")
    told = data("--hardware", MACHINE, "--top", "500", *names, cache=cache)
    merits = [row["merit"] for row in told["models"]]
    assert merits == sorted(merits, reverse=True)
    assert told["n_fit"] == len(told["models"])
    assert told["n_models"] == told["n_fit"] + len(told["not_fitting"])
    left_out = {row["id"]: row["why"] for row in told["not_fitting"]}
    assert "needs" in left_out["deepseek-ai/DeepSeek-V3"]
    assert "no benchmark figures ship" in told["prior"]


def test_each_objective_orders_by_what_it_is_for(cache: Path) -> None:
    words = ("--hardware", MACHINE, "--family", "SmolLM2", "--family", "LFM2", "--top", "500")
    fastest = [row["plan"]["decode_tokens_per_s"] for row in data(*words, "--for", "speed", cache=cache)["models"]]
    assert fastest == sorted(fastest, reverse=True)
    longest = data(*words, "--for", "context", cache=cache)["models"]
    usable = [row["plan"]["n_ctx_per_slot"] for row in longest if row["plan"]["decode_tokens_per_s"] >= 5]
    assert usable == sorted(usable, reverse=True)


def test_filters() -> None:
    every = filtered("chat", licences=(), families=(), max_parameters=None)
    small = filtered("chat", licences=("apache",), families=(), max_parameters=4_000_000_000)
    assert 0 < len(small) < len(every)
    assert all((entry.licence or "").startswith("apache") for entry in small)
    assert all((entry.published or 0) <= 4_000_000_000 for entry in small)
    assert {entry.id for entry in filtered("code", licences=(), families=("coder-next",), max_parameters=None)} == {
        "Qwen/Qwen3-Coder-Next"
    }


def test_an_empty_filter_says_which_one_to_drop() -> None:
    with pytest.raises(NoModelLeft, match="without the licence mit there are 2") as caught:
        filtered("chat", licences=("mit",), families=("Qwen",), max_parameters=1_000_000_000)
    assert dict(caught.value.without)["the licence mit"] == 2
    with pytest.raises(NoModelLeft, match=r"known: apache-2\.0"):
        filtered("chat", licences=("nosuch",), families=(), max_parameters=None)


def test_a_use_without_data_is_one_sentence(cache: Path) -> None:
    with pytest.raises(UseWithoutData):
        filtered("classification", licences=(), families=(), max_parameters=None)
    done = run("--use", "classification", cache=cache)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "Error: the catalog does not say which models are for classification; it does for chat, code, reasoning, "
        "tools, vision, embedding"
    )
    assert done.stderr.splitlines()[1].startswith("Hint: --use chat")


def test_bad_words_are_one_sentence_and_a_hint(cache: Path) -> None:
    unknown = run("--hardware", "rtx4071", cache=cache)
    assert unknown.returncode == 2
    assert "no GPU called 'rtx4071' is known; near names: " in unknown.stderr
    number = run("--max-params", "many", cache=cache)
    assert number.returncode == 2
    assert "is no number of parameters, such as 8B" in number.stderr
    nothing = run("--hardware", "1GB", "--family", "70B", cache=cache)
    assert nothing.returncode == 3
    assert "of the" in nothing.stderr
    assert len(nothing.stderr.strip().splitlines()) <= 4
    alone = run("--use", "vision", "Qwen/Qwen3-8B", "--hardware", MACHINE, cache=cache)
    assert alone.returncode == 2
    assert "it has no vision tower" in alone.stderr


def test_kept_plans_answer_at_once_and_never_for_other_options(tmp_path: Path) -> None:
    words = ("--hardware", MACHINE, "--family", "SmolLM2", "--top", "3")
    first = data(*words, cache=tmp_path)
    files = list((tmp_path / "catalog-plans").glob("*.json"))
    assert len(files) == 1
    started = os.times().children_user
    again = data(*words, cache=tmp_path)
    spent = os.times().children_user - started
    assert again == first
    assert spent < 1.5  # of a loaded machine; docs/catalog.md has what a quiet one takes
    kept = json.loads(files[0].read_text())
    victim = again["models"][0]["id"]
    kept[victim]["plan"]["decode_tokens_per_s"] = 1e6
    files[0].write_text(json.dumps(kept))
    assert data(*words, "--for", "speed", cache=tmp_path)["models"][0]["plan"]["decode_tokens_per_s"] < 1e6
    shown = {row["id"]: row for row in data(*words, cache=tmp_path)["models"]}
    assert shown[victim]["plan"]["decode_tokens_per_s"] == 1e6  # so it was the kept plan that answered
    files[0].write_text("{cut")
    assert data(*words, cache=tmp_path) == first


def test_this_machine_too(cache: Path) -> None:
    told = data("--max-params", "2B", "--top", "2", cache=cache)
    assert told["hardware"]["profile"] is None
    assert len(told["models"]) == 2


def test_what_ships_with_quantplan_is_not_ranked() -> None:
    assert catalog.BUNDLED not in {
        entry.id for entry in filtered("chat", licences=(), families=(), max_parameters=None)
    }
