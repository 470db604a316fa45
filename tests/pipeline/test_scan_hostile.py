"""Every hostile file and repository is caught with its rule and place, in under a second, and never by loading it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile_gguf import PLACES, STRUCTURE, Case, template
from hostile_sources import PICKLES, REPOSITORIES, Source, lay_out
from hostile_templates import ATTACKS, Attack

from quantplan.artifact.results import Finding, Severity, Verdict
from quantplan.llama.process import run_tool
from quantplan.pipeline.scanning import template as templates
from quantplan.pipeline.scanning.scan import Request, Scanned, scan

AFTER_STRUCTURE = ("NaN", "an infinite scale")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's clock decides nothing here, the computing time does; test_scan_template.py has the clock."""
    monkeypatch.setattr(templates, "WALL_S", 20.0)


class Recorder:
    """Starts what a scan starts, and remembers what that was."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, argv: Sequence[str], **more: Any) -> Any:
        self.started.append(next(name for name in ("jinja_worker", "numbers_worker") if name in " ".join(argv)))
        return run_tool(argv, **more)


def cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def scanned(path: Path) -> tuple[Scanned, Recorder]:
    """The scan, in under a second of computing, its own processes' too: this machine may be busy with others."""
    run, before = Recorder(), cpu_s()
    found = scan(str(path), Request(base="none", run=run))
    assert cpu_s() - before < 1.0
    return found, run


def hits(found: Sequence[Finding], rule: str, place: dict[str, object]) -> list[Finding]:
    """Findings of the rule at the place that are more than a note."""
    return [
        one for one in found
        if one.rule == f"scan/{rule}" and one.severity is not Severity.NOTE
        and all(getattr(one, key) == value for key, value in place.items())
    ]  # fmt: skip


def test_the_corpus_is_large_and_every_case_names_its_danger() -> None:
    cases: list[Case | Source | Attack] = [*STRUCTURE, *PLACES, *ATTACKS, *PICKLES, *REPOSITORIES]
    assert len({(type(case), case.name) for case in cases}) == len(cases) >= 60
    assert all(case.danger for case in cases)


@pytest.mark.parametrize("case", [*STRUCTURE, *PLACES], ids=lambda case: case.name)
def test_gguf(case: Case, tmp_path: Path) -> None:
    found, run = scanned(case.build(tmp_path))
    assert hits(found.findings, case.rule, case.place), found.findings
    assert found.verdict is Verdict.FAIL
    unreadable = any(one.rule.startswith(("scan/gguf-", "scan/path")) for one in found.findings)
    refused = unreadable or any(one.severity is Severity.ERROR for one in found.findings)
    if refused and case.name not in AFTER_STRUCTURE and case.rule not in ("hidden-text", "token-id", "terminal"):
        assert "numbers_worker" not in run.started  # the data is looked at only where the structure is sound


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_template(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(template(attack.source))
    run, before = Recorder(), cpu_s()
    found = scan(str(tmp_path / "m.gguf"), Request(base="none", with_data=False, run=run))
    spent = cpu_s() - before
    place: dict[str, object] = {"where": "tokenizer.chat_template", "line": attack.line}
    assert hits(found.findings, attack.rule, place), found.findings
    assert run.started == ["jinja_worker"]
    assert spent < 1.0


@pytest.mark.parametrize("source", [*PICKLES, *REPOSITORIES], ids=lambda source: source.name)
def test_source(source: Source, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    found, run = scanned(lay_out(source, tmp_path / "repo"))
    assert hits(found.findings, source.rule, source.place), found.findings
    assert "numbers_worker" not in run.started


def test_what_reaches_for_python_is_not_even_rendered(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    source = "{{ cycler.__init__.__globals__['__builtins__']['open']('" + str(marker) + "', 'w') }}"
    (tmp_path / "m.gguf").write_bytes(template(source))
    found = scan(str(tmp_path / "m.gguf"), Request(base="none", with_data=False))
    assert not marker.exists()
    assert not any(one.rule == "scan/template-fails" for one in found.findings)
