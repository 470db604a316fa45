"""The models that ship with quantplan."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config

ROOT = Path(__file__).resolve().parent.parent.parent
OTHERWISE = {"tiiuae/Falcon-H1-7B-Instruct": "its configuration here has wider layers than the hub's"}
ROPE_SCALED = ("Llama-3", "Distill-Llama-8B", "gemma-3", "deepseek-coder")  # their configurations scale the rope
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


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
    assert len(set(ids)) == len(ids) >= 200
    counts: dict[str, int] = {}
    for entry in catalog.entries():
        if entry.parameters is None:
            continue
        if entry.shape not in counts:
            header = header_from_config(entry.config)
            counts[entry.shape] = sum(t.n_elements for t in header.tensors if t.name not in ROPE_TABLES)
        assert counts[entry.shape] == entry.parameters, entry.id


def published_rows(shared: Path) -> dict[str, dict[str, str]]:
    with (shared / "facts" / "models_published.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_counts_agree_with_what_others_published(shared: Path) -> None:
    """`published` is the table's to the unit; the language model and its tower are within 1 % of it, or the entry
    says what else is counted there."""
    rows = published_rows(shared)
    known = [entry for entry in catalog.entries() if entry.id in rows]
    assert len(known) > 200
    assert {entry.id: entry.published for entry in known} == {e.id: int(rows[e.id]["parameters"]) for e in known}
    wrong = {
        entry.id: (entry.parameters, entry.published)
        for entry in known
        if entry.beside is None and entry.id not in OTHERWISE
        and abs((entry.published or 0) - (entry.parameters or 0) - (entry.vision_parameters or 0))
        > 0.01 * (entry.published or 1)
    }  # fmt: skip
    assert wrong == {}
    assert sum(entry.beside is not None for entry in known) < 30


def test_towers_are_as_large_as_towers_are() -> None:
    """What a published count has beyond the language model is a tower only while it is as small as one."""
    sizes = [entry.vision_parameters for entry in catalog.entries() if entry.vision_parameters is not None]
    assert len(sizes) > 20
    assert all(40_000_000 < size < 800_000_000 for size in sizes)
    assert all(entry.vision_parameters for entry in catalog.entries() if "vision" in entry.uses)


def test_contexts_are_those_of_the_configurations(shared: Path) -> None:
    """The table's contexts where it read a configuration, but for those it multiplies by the factor of the rope."""
    rows = published_rows(shared)
    differ = {}
    for entry in catalog.entries():
        row = rows.get(entry.id)
        if row is None or not row["num_hidden_layers"]:
            continue
        text = entry.config.get("text_config", entry.config)
        assert isinstance(text, dict)
        n_ctx = text.get("max_position_embeddings")
        if n_ctx is not None and n_ctx != int(row["context_length"]):
            differ[entry.id] = (n_ctx, int(row["context_length"]))
    scaled = {model: theirs / ours for model, (ours, theirs) in differ.items()}
    assert all(factor in (2, 4, 8) for factor in scaled.values()), differ
    assert all(any(name in model for name in ROPE_SCALED) for model in scaled), differ


def test_layers_and_heads_agree_with_what_others_published(shared: Path) -> None:
    rows = published_rows(shared)
    checked = 0
    for entry in catalog.entries():
        row = rows.get(entry.id)
        text = entry.config.get("text_config", entry.config)
        assert isinstance(text, dict)
        for ours in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            if row is not None and row[ours] and ours in text:
                assert text[ours] == int(row[ours]), (entry.id, ours)
                checked += 1
    assert checked > 500


@pytest.mark.parametrize("field", ["licence", "released", "source"])
def test_no_entry_is_without_licence_date_and_source(field: str) -> None:
    assert [entry.id for entry in catalog.entries() if not getattr(entry, field)] == []


def test_sources_name_a_page_and_how_the_figures_were_had() -> None:
    for entry in catalog.entries():
        assert set(entry.source) == {"config", "how"}, entry.id
        if entry.folder is None:
            assert entry.source["config"] == f"https://huggingface.co/{entry.id}/blob/main/config.json"


def test_uses_are_known_words_and_each_has_models() -> None:
    by_use = Counter(use for entry in catalog.entries() for use in entry.uses)
    assert set(by_use) == {"chat", "code", "reasoning", "tools", "vision", "embedding"}
    assert min(by_use.values()) >= 7


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
