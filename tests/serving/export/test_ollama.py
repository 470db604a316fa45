"""Ollama's Modelfile and variables say the plan, and the notes say the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving.export.cases import CASES, Case, deployment
from serving.export.deployed import put
from serving.export.read_ollama import environment, parse

from quantplan.errors import CannotExport, TargetTooOld
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import export
from quantplan.serving.lint.check import lint_paths

WHOLE = [case for case in CASES if case.name != "shards"]


def both(told: Deployment) -> tuple[str, str]:
    modelfile, variables = export("ollama", (told,)).files
    assert (modelfile.name, variables.name) == ("Modelfile", "ollama.env")
    return modelfile.text, variables.text


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_context_slots_threads_and_files_are_the_plan_s(case: Case, tmp_path: Path) -> None:
    told = deployment(tmp_path, case)
    text, variables = both(told)
    found, env, plan = parse(text), environment(variables), told.plan
    assert found.parameters == {
        "num_ctx": plan.n_ctx_per_slot, "num_batch": plan.n_ubatch, "num_thread": plan.threads,
        "num_gpu": plan.n_gpu_layers, "use_mmap": True,
    }  # fmt: skip
    assert found.sources[0] == str(told.model.path)
    assert len(found.sources) == (2 if plan.mmproj else 1)
    assert env["OLLAMA_NUM_PARALLEL"] == str(plan.n_parallel)
    assert env["OLLAMA_CONTEXT_LENGTH"] == str(plan.n_ctx_per_slot)
    assert env["OLLAMA_HOST"] == "127.0.0.1:8080"
    assert env.get("CUDA_VISIBLE_DEVICES") == {"two cards": "0,1", "the second card": "1"}.get(case.name)


@pytest.fixture
def told(tmp_path: Path) -> Deployment:
    return deployment(tmp_path, CASES[0])


@pytest.mark.parametrize(
    ("type_k", "type_v", "found", "note"),
    [
        ("f16", "f16", "f16", None),
        ("q8_0", "q8_0", "q8_0", None),
        ("q8_0", "q4_0", "q8_0", "q8_0 instead of q8_0 for K and q4_0 for V, which takes more memory than planned"),
        ("q5_1", "q5_1", "q8_0", "q8_0 instead of q5_1 for K and q5_1 for V, which takes more memory than planned"),
        ("bf16", "bf16", "f16", "f16 instead of bf16 for K and bf16 for V, which takes as much"),
        ("f32", "f32", "f16", "f16 instead of f32 for K and f32 for V, which takes less memory"),
    ],
)
def test_the_cache_is_never_coarser_than_planned_where_it_can_be(
    type_k: str, type_v: str, found: str, note: str | None, told: Deployment
) -> None:
    changed = replace(told, plan=replace(told.plan, type_k=type_k, type_v=type_v))
    assert environment(both(changed)[1])["OLLAMA_KV_CACHE_TYPE"] == found
    said = [one for one in export("ollama", (changed,)).notes if "one type of KV cache" in one]
    assert bool(said) == (note is not None)
    assert note is None or said[0].endswith(note)


def test_what_is_lost_is_said(told: Deployment) -> None:
    plan = replace(told.plan, threads_batch=8, n_batch=2048, cache_ram_bytes=1 << 30, tensor_split=(1.0, 2.0),
                   n_cpu_moe=2, numa="isolate", load_mode="mmap+mlock")  # fmt: skip
    notes = "\n".join(export("ollama", (replace(told, plan=plan),)).notes)
    for lost in ("threads for batches", "batch size", "prompt cache", "split over the cards", "experts on the host",
                 "NUMA and pinned CPUs", "locked memory", "chat template", "has no keys",
                 "limits no memory"):  # fmt: skip
        assert lost in notes
    assert "no word for" not in "\n".join(export("ollama", (told,)).notes)


def test_shards_odd_paths_old_versions_and_lint(told: Deployment, tmp_path: Path) -> None:
    shards = deployment(tmp_path / "shards", next(case for case in CASES if case.name == "shards"))
    with pytest.raises(CannotExport, match="no model in several files"):
        export("ollama", (shards,))
    with pytest.raises(CannotExport, match="cannot be written in a Modelfile"):
        export("ollama", (replace(told, target=replace(told.target, folder=Path('/models/"a"'))),))
    quantized = replace(told, plan=replace(told.plan, type_k="q8_0", type_v="q8_0"))
    with pytest.raises(TargetTooOld, match=r"Ollama 0\.4\.7 is too old"):
        export("ollama", (quantized,), version="0.4.7")
    folder = put(tmp_path / "out", export("ollama", (told,)))
    assert lint_paths([folder], plan=told.plan).findings == ()
