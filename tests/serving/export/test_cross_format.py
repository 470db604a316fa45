"""Every format says the same: context, slots, threads, memory limits and hashes, of every kind of plan."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from serving.export.cases import CASES, Case, deployment, plan_of
from serving.export.facts import Facts

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import sha256_of
from quantplan.errors import CannotExport
from quantplan.llama import server_flags as flags
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import FORMATS, export
from quantplan.serving.export.write import write_files
from quantplan.serving.lint.check import lint_paths
from quantplan.units import MIB


def reader(name: str) -> ModuleType:
    return importlib.import_module(f"serving.export.read_{FORMATS[name].module}")


def read(name: str, told: Deployment, case: Case) -> Facts | None:
    """None where the format refuses the plan, and its reader says that it has to."""
    refused = case.name in getattr(reader(name), "REFUSED", ())
    try:
        made = export(name, (told,))
    except CannotExport:
        assert refused
        return None
    assert not refused
    facts: Facts = reader(name).read(made.files)
    return facts


def settings_of(plan: Plan) -> dict[str, str]:
    """What llama-server has to be told, written down once more, beside the product's own table."""
    pool = plan.n_ctx_per_slot * plan.n_parallel
    told = {
        "ctx-size": str(pool), "parallel": str(plan.n_parallel), "kv-unified": "on" if plan.kv_unified else "off",
        "cache-type-k": plan.type_k, "cache-type-v": plan.type_v, "flash-attn": plan.flash_attn,
        "batch-size": str(plan.n_batch), "ubatch-size": str(plan.n_ubatch), "n-gpu-layers": str(plan.n_gpu_layers),
        "threads": str(plan.threads), "threads-batch": str(plan.threads_batch), "fit": "off",
        "cache-ram": str(plan.cache_ram_bytes // MIB), "load-mode": plan.load_mode, "alias": plan.model,
    }  # fmt: skip
    if plan.kv_unified:
        told["kv-unified-per-slot"] = str(plan.n_ctx_per_slot)
    if plan.override_tensor:
        told["override-tensor"] = ",".join(plan.override_tensor)
    if plan.n_cpu_moe:
        told["n-cpu-moe"] = str(plan.n_cpu_moe)
    return told


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(name: str, case: Case, tmp_path: Path) -> None:
    told, plan = deployment(tmp_path, case), plan_of(case)
    facts = read(name, told, case)
    if facts is None:
        return
    model = sorted((tmp_path / "artifacts" / "m-Q4_K_M").glob("m-*.gguf"))[0]
    memory = sum(one.total_bytes for one in plan.memory if one.name == "Host") + plan.cache_ram_bytes
    assert facts.marks["artifact-sha256"] == sha256_of(model)
    assert facts.marks["plan-sha256"] == told.plan_sha256
    assert int(facts.marks["n-ctx"]) == plan.n_ctx_per_slot * plan.n_parallel
    assert int(facts.marks["n-ctx-per-slot"]) == plan.n_ctx_per_slot
    assert int(facts.marks["n-parallel"]) == plan.n_parallel
    assert int(facts.marks["threads"]) == plan.threads
    assert facts.marks["verdict"] == "pass"
    limit = int(facts.marks["memory-max-bytes"])
    assert memory + 256 * MIB <= limit < memory + (1024 + 257) * MIB
    assert facts.marks == told.marks
    assert facts.memory_max_bytes in (None, limit)
    assert facts.cpus in (None, max(plan.threads, plan.threads_batch))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", FORMATS)
def test_every_server_is_told_the_plan(name: str, case: Case, tmp_path: Path) -> None:
    told, plan = deployment(tmp_path, case), plan_of(case)
    facts = read(name, told, case)
    if facts is None or not facts.settings:
        return
    found = {"threads-batch": facts.settings["threads"], **facts.settings}
    wrong = {flag: (value, found.get(flag)) for flag, value in settings_of(plan).items()
             if not flags.same(value, found.get(flag))}  # fmt: skip
    assert not wrong
    assert Path(found["model"]).name == told.model.path.name
    for role in ("mmproj", "draft"):
        flag, planned = {"draft": "model-draft"}.get(role, role), getattr(plan, role)
        assert Path(found.get(flag, "")).name == Path(planned or "").name
    assert ("embedding" in found) == plan.embeddings
    assert "api-key-file" in found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", FORMATS)
def test_the_hashes_that_are_checked_are_those_of_the_files(name: str, case: Case, tmp_path: Path) -> None:
    told = deployment(tmp_path, case)
    facts = read(name, told, case)
    if facts is None or not facts.hashes:
        return
    folder = tmp_path / "artifacts"
    on_disk = {path.name: sha256_of(path) for path in folder.rglob("*.gguf")}
    assert {Path(path).name: digest for path, digest in facts.hashes.items()} == on_disk


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", FORMATS)
def test_lint_finds_nothing(name: str, case: Case, tmp_path: Path) -> None:
    told = deployment(tmp_path, case)
    if case.name in getattr(reader(name), "REFUSED", ()):
        return
    write_files(tmp_path / "out", export(name, (told,)).files)
    for plan in (None, told.plan):
        found = lint_paths([tmp_path / "out"], plan=plan)
        assert [f"{one.file}:{one.line} {one.rule} {one.message}" for one in found.findings] == []


@pytest.mark.parametrize("name", FORMATS)
def test_every_note_is_a_sentence_of_its_own(name: str, tmp_path: Path) -> None:
    for case in CASES:
        if case.name in getattr(reader(name), "REFUSED", ()):
            continue
        notes = export(name, (deployment(tmp_path / case.name, case),)).notes
        assert len(set(notes)) == len(notes)
        assert all(note == note.strip() and not note.endswith(".") and "\n" not in note for note in notes)
