"""The models that ship with quantplan."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config

ROOT = Path(__file__).resolve().parent.parent.parent
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Published counts that are not those of the language model in 16 bit; what is more there, and why.
OTHERWISE = {
    "google/gemma-3-12b-it": "vision tower",
    "google/gemma-3-27b-it": "vision tower",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "MTP layer",
    "zai-org/GLM-4.5-Air": "MTP layer",
    "baidu/ERNIE-4.5-21B-A3B-PT": "MTP layer",
    "deepseek-ai/DeepSeek-V3": "MTP layer, and scales of FP8",
    "openai/gpt-oss-20b": "scales of MXFP4",
    "openai/gpt-oss-120b": "scales of MXFP4",
    "Qwen/Qwen3-0.6B": "the tied output counted again",
    "tencent/Hunyuan-7B-Instruct": "tied there, not in the configuration",
    "nvidia/Nemotron-Mini-4B-Instruct": "tied there, not in the configuration",
    "tiiuae/Falcon-H1-7B-Instruct": "its configuration here has wider layers than the hub's",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct", "llama-3.1-8b", "LLAMA-3.1-8B", " Llama-3.1-8B "],
)
def test_a_model_is_found_by_id_bare_name_and_alias_in_any_case(name: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.id == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda entry: entry.id)
def test_every_model_is_found_by_each_of_its_names(entry: catalog.CatalogEntry) -> None:
    for name in (entry.id, entry.name, entry.id.rpartition("/")[2], *entry.aliases):
        for written in (name, name.lower(), name.upper()):
            found = catalog.find(written)
            assert found is not None, written
            assert found.id == entry.id, written


def test_what_is_not_there_is_not_guessed() -> None:
    assert catalog.find("llama") is None
    assert catalog.find("") is None
    assert "Qwen/Qwen3-8B" in catalog.near("qwen3-8")
    assert catalog.near("") == ()


def test_ids_are_unique_and_every_model_has_a_header() -> None:
    ids = [entry.id for entry in catalog.entries()]
    assert len(set(ids)) == len(ids) >= 50
    for entry in catalog.entries():
        header = header_from_config(entry.config)
        counted = sum(t.n_elements for t in header.tensors if t.name not in ROPE_TABLES)
        if entry.parameters is not None:
            assert counted == entry.parameters, entry.id


def test_counts_agree_with_what_others_published(shared: Path) -> None:
    with (shared / "facts" / "models_published.csv").open(newline="", encoding="utf-8") as file:
        published = {row["name"]: int(row["parameters"]) for row in csv.DictReader(file) if row["parameters"]}
    known = [entry for entry in catalog.entries() if entry.id in published]
    assert len(known) > 20
    wrong = {
        entry.id: (entry.parameters, published[entry.id])
        for entry in known
        if entry.id not in OTHERWISE
        and abs(published[entry.id] - (entry.parameters or 0)) > 0.001 * published[entry.id]
    }
    assert wrong == {}


def test_the_file_is_what_the_script_writes(shared: Path) -> None:
    facts = shared / "facts"
    argv = [
        sys.executable, str(ROOT / "scripts" / "catalog.py"), "--configs", str(facts / "model_configs.json"),
        "--published", str(facts / "models_published.csv"), "--check",
    ]  # fmt: skip
    assert subprocess.run(argv, check=False).returncode == 0, "data/catalog.json is stale: run scripts/catalog.py"


def test_leaving_out_defaults_changes_nothing(shared: Path) -> None:
    for row in json.loads((shared / "facts" / "model_configs.json").read_text()):
        entry = catalog.find(row["hub_id"])
        assert entry is not None
        assert header_from_config(entry.config) == header_from_config(row["config"]), row["hub_id"]
