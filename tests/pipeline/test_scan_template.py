"""The sandbox holds whatever a template does; and two templates are told apart by what they write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hostile_templates import ATTACKS, PLAIN

from quantplan.artifact.results import Severity
from quantplan.llama.process import run_tool
from quantplan.llama.types import Completed
from quantplan.pipeline.scanning import template
from quantplan.pipeline.scanning.template import differences, scan_template
from quantplan.units import MIB

HEAVY = [
    one for one in ATTACKS if one.shown in ("time", "memory") or one.rule in ("template-recursion", "template-output")
]
KEY = "tokenizer.chat_template"


class Measured:
    """Starts the worker and keeps what it cost: without our own clock, which would hide its peak."""

    def __init__(self) -> None:
        self.done: list[Completed] = []

    def __call__(self, argv: Sequence[str], **more: Any) -> Completed:
        self.done.append(run_tool(argv, **{**more, "timeout_s": None}))
        return self.done[-1]

    @property
    def peak_bytes(self) -> int:
        return max(one.peak_rss_bytes or 0 for one in self.done)


@pytest.fixture(scope="module")
def baseline() -> int:
    run = Measured()
    scan_template("{{ messages[-1].content }}", file="m", where=KEY, run=run)
    return run.peak_bytes


@pytest.mark.parametrize("attack", HEAVY, ids=lambda one: one.name)
def test_never_more_than_a_second_and_64_mib(attack: Any, baseline: int) -> None:
    run = Measured()
    started = time.monotonic()
    rendered = scan_template(attack.source, file="m", where=KEY, run=run)
    assert rendered.findings
    assert run.peak_bytes < baseline + 64 * MIB
    assert all(one.seconds < 1.0 + template.START_S for one in run.done)
    assert time.monotonic() - started < 60


def test_the_clock_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "CPU_S", 30.0)  # only the clock is left
    monkeypatch.setattr(template, "ATTEMPTS", 1)
    run = Measured()
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (found,) = scan_template(source, file="m", where=KEY, run=run).findings
    assert (found.rule, found.severity) == ("scan/template-time", Severity.WARNING)
    assert run.done[0].returncode < 0


def test_nothing_is_written_from_inside(tmp_path: Any) -> None:
    rendered = scan_template(PLAIN, file="m", where=KEY)
    assert rendered.prompts is not None
    assert rendered.prompts["user"].startswith("<|user|>What grows on the north side")
    assert rendered.prompts["user"].endswith("<|end|><|assistant|>")


def test_without_jinja_it_says_so_and_reads_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "why_no_jinja", lambda: "jinja2 is not installed: …")
    found = scan_template("a\n{{ lipsum.__globals__ }}\nhttps://evil.example/x", file="m", where=KEY)
    by_rule = {one.rule: one for one in found.findings}
    assert by_rule["scan/template-escape"].line == 2
    assert by_rule["scan/template-url"].line == 3
    note = by_rule["scan/template-unrendered"]
    assert (note.severity, note.help) == (Severity.NOTE, "pip install 'quantplan[scan]'")
    assert found.prompts is None
    plain = scan_template(PLAIN, file="m", where=KEY).findings
    assert [one.severity for one in plain] == [Severity.NOTE]


def test_an_old_jinja_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template.metadata, "version", lambda name: "3.1.4")
    assert "3.1.4" in str(template.why_no_jinja())


def test_differences_name_the_conversation_and_the_place() -> None:
    ours = scan_template(PLAIN, file="m", where=KEY).prompts
    other = scan_template(PLAIN.replace("<|end|>", "<|eot|>"), file="s", where=KEY).prompts
    assert ours is not None
    assert other is not None
    same = differences(ours, ours, file="m", where=KEY, base="org/base")
    assert (same.rule, same.severity) == ("scan/template-same", Severity.NOTE)
    unlike = differences(ours, other, file="m", where=KEY, base="org/base")
    assert (unlike.rule, unlike.severity) == ("scan/template-differs", Severity.WARNING)
    assert "<|end|>" in unlike.message
    assert "<|eot|>" in unlike.message
    assert f"renders {len(ours)} of {len(ours)} conversations otherwise than org/base" in unlike.message


@pytest.mark.parametrize(("line", "rule"), [
    ("{%- if '</think>' in messages[-1].content %}{{- 'a b c d e f' }}{%- endif %}", None),
    ("{%- if messages[-1].content is string %}{{- '' }}{%- endif %}", None),
    ("{%- if 'image_url' in messages[-1].content %}{{- '<image>' }}{%- endif %}", None),
    ("{%- if messages|length > 1 %}{{- '' }}{%- endif %}", None),
    ("{%- if '/no_think' in messages[0].content %}{{- 'Answer at once and in few words.' }}{%- endif %}", "note"),
    ("{%- if 'weather' in messages[0].content %}{{- '' }}{%- endif %}", "note"),
    ("{%- if 'weather' in messages[0].content %}{{- 'sunny' }}{%- endif %}", "warning"),
])  # fmt: skip
def test_what_vendors_write_is_no_trigger(line: str, rule: str | None) -> None:
    found = scan_template(line + "\n" + PLAIN, file="m", where=KEY).findings
    assert [one.severity.value for one in found if one.line == 1] == ([rule] if rule else [])
