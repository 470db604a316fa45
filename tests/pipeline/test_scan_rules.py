"""docs/scan.md has every rule that the code can give; a pull refuses what a scan finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hostile_gguf import PLACES, STRUCTURE, template
from hostile_sources import PICKLES, REPOSITORIES
from hostile_templates import ATTACKS, PLAIN

from quantplan.pipeline.pull import Finished, scan_all

ROOT = Path(__file__).resolve().parents[2]


def in_docs() -> set[str]:
    """The first column of the table of rules; `template-time, -memory` stands for template-memory."""
    table = (ROOT / "docs" / "scan.md").read_text(encoding="utf-8").split("## Rules")[1].split("## What it cannot")[0]
    names = set()
    for row in re.findall(r"^\| ([a-z, -]+) \|", table, re.MULTILINE):
        for name in row.split(", "):
            names.add(f"template{name}" if name.startswith("-") else name)
    return names


def test_every_rule_is_in_the_docs() -> None:
    told = in_docs()
    assert {case.rule for case in (*STRUCTURE, *PLACES, *PICKLES, *REPOSITORIES, *ATTACKS)} <= told
    code = "".join(path.read_text() for path in (ROOT / "quantplan/pipeline/scanning").glob("*.py"))
    reader = "".join(path.read_text() for path in (ROOT / "quantplan/model").glob("*.py"))
    given = set(re.findall(r"rule=\"scan/([a-z-]+)\"", code)) | set(re.findall(r"rule=\"([a-z-]+)\"", reader))
    given |= set(re.findall(r"_finding\(\"(?:scan/)?([a-z-]+)\"", code)) | set(
        re.findall(r"\"(template-[a-z]+)\"", code)
    )
    assert given - told - {"structure"} == set()
    assert told - given == {"safetensors", "rule"}  # of the head of the table; of what a safetensors reader refuses


@pytest.mark.parametrize(("source", "rules"), [(PLAIN, []), ("{{ cycler.__init__ }}", ["scan/template-escape"])])
def test_a_pull_scans_the_template_too(source: str, rules: list[str], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(template(source))
    found = scan_all(Finished(name="m", label="F32", files=(path,), names=("m.gguf",)))
    assert [one.rule for one in found if one.severity.value == "error"] == rules
