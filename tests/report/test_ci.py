"""What a CI reads, held to its schemas and limits; whole outputs where they are short."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import sarif_pydantic
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.artifact.results import Finding, Metric, Result, Severity, Verdict
from quantplan.report.ci import (
    SUMMARY_BYTES,
    Checked,
    CiTargets,
    checks_of,
    github_annotations,
    junit_xml,
    markdown,
    sarif,
    step_summary,
    worst,
    write_ci_files,
)

SHA = "ab" * 32


def metric(name: str = "kld_mean", **change: Any) -> Metric:
    told = {
        "corpus": "prose", "value": 0.02, "se": 0.001, "low": 0.018, "high": 0.022, "limit": 0.01, "n": 5100,
        **change,
    }  # fmt: skip
    return Metric(name=name, **told)


def checked(*metrics: Metric, verdict: Verdict = Verdict.FAIL, **change: Any) -> Checked:
    result = Result(
        artifact_sha256=SHA, policy="standard", verdict=verdict, metrics=metrics, tool={"version": "b1"}, host={},
        **change,
    )  # fmt: skip
    return Checked(name="toy-Q2_K", result=result, file="artifacts/toy Q2/toy-Q2_K.gguf", seconds=1.5)


PASSED = metric(value=0.002, low=0.001, high=0.003, corpus="code")
UNDECIDED = metric(value=0.010, low=0.008, high=0.012, corpus="chat")
REPORTED = metric("ppl_ratio", value=1.02, limit=None)
CHAT = "0.01 ± 0.002, limit 0.01 (5,100 tokens)"
THREE = checked(PASSED, metric(), UNDECIDED, REPORTED, made_at="2026-11-22T01:02:03Z", reason="outside on prose")
FINDINGS = (
    Finding(rule="lint/unpinned", severity=Severity.WARNING, message="no revision", file="a,b:c.sh", line=3,
            help="add @<commit>"),
    Finding(rule="scan/not-finite", severity=Severity.ERROR, message="NaN in blk.0\n100% of it", file=None),
)  # fmt: skip


def test_a_metric_without_a_verdict_is_judged_by_its_bounds() -> None:
    told = [(c.title, c.verdict.value, c.severity) for c in checks_of((THREE,))]
    assert told == [
        ("mean KL divergence on code", "pass", None),
        ("mean KL divergence on prose", "fail", Severity.ERROR),
        ("mean KL divergence on chat", "inconclusive", Severity.WARNING),
    ]


@pytest.mark.parametrize(
    ("limit_is", "low", "high", "expected"),
    [("max", 1, 2, "pass"), ("max", 4, 5, "fail"), ("max", 2, 4, "inconclusive"),
     ("min", 1, 2, "fail"), ("min", 4, 5, "pass"), ("min", 2, 4, "inconclusive")],
)  # fmt: skip
def test_the_side_of_a_limit(limit_is: str, low: float, high: float, expected: str) -> None:
    one = checked(metric(value=(low + high) / 2, low=low, high=high, limit=3, limit_is=limit_is))
    assert checks_of((one,))[0].verdict.value == expected


def test_a_metrics_own_verdict_counts_and_what_was_not_measured_says_why() -> None:
    missing = metric("decode_tokens_per_s", value=None, low=None, high=None, corpus=None,
                     verdict=Verdict.INCONCLUSIVE, reason="no bench result; run: quantplan bench")  # fmt: skip
    (check,) = checks_of((checked(missing, verdict=Verdict.INCONCLUSIVE),))
    assert (check.verdict, check.message) == (Verdict.INCONCLUSIVE, "no bench result; run: quantplan bench")


def test_a_verdict_that_no_check_carries_is_told_as_one() -> None:
    (only,) = checks_of((checked(verdict=Verdict.ERROR, reason="llama-perplexity crashed"),))
    assert (only.rule, only.verdict, only.message) == ("gate/verdict", Verdict.ERROR, "llama-perplexity crashed")
    last = checks_of((checked(PASSED, verdict=Verdict.INCONCLUSIVE, reason="too few tokens"),))[-1]
    assert (last.rule, last.message) == ("gate/verdict", "too few tokens")


def test_the_worst_of_several() -> None:
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert worst([Verdict.INCONCLUSIVE, Verdict.FAIL]) is Verdict.FAIL
    assert worst([]) is Verdict.UNMEASURED


def test_junit_whole() -> None:
    assert (
        junit_xml((THREE,))
        == f"""<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="quantplan" tests="3" failures="1" errors="1" time="1.500">
  <testsuite name="toy-Q2_K" tests="3" failures="1" errors="1" skipped="0" time="1.500" timestamp="2026-11-22T01:02:03">
    <properties>
      <property name="verdict" value="fail" />
      <property name="artifact_sha256" value="{SHA}" />
      <property name="policy" value="standard" />
      <property name="file" value="artifacts/toy Q2/toy-Q2_K.gguf" />
      <property name="engine" value="b1" />
      <property name="ppl_ratio prose" value="1.02" />
    </properties>
    <testcase classname="toy-Q2_K" name="gate/kld_mean: mean KL divergence on code" time="0" />
    <testcase classname="toy-Q2_K" name="gate/kld_mean: mean KL divergence on prose" time="0">
      <failure message="0.02 ± 0.002, limit 0.01 (5,100 tokens)" type="fail">0.02 ± 0.002, limit 0.01 (5,100 tokens)
artifacts/toy Q2/toy-Q2_K.gguf</failure>
    </testcase>
    <testcase classname="toy-Q2_K" name="gate/kld_mean: mean KL divergence on chat" time="0">
      <error message="{CHAT}" type="inconclusive">{CHAT}
artifacts/toy Q2/toy-Q2_K.gguf</error>
    </testcase>
    <system-out>outside on prose</system-out>
  </testsuite>
</testsuites>
"""
    )


# The Jenkins/xunit JUnit schema: element -> (attributes, required among them, children in order)
JUNIT: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "group", "time", "skipped", "timestamp", "hostname", "id", "package",
         "file", "log", "url", "version"},
        {"name", "tests", "failures", "errors"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, {"name", "value"}, []),
    "testcase": (
        {"name", "assertions", "time", "classname", "status"}, {"name"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "failure": ({"type", "message"}, set(), []),
    "error": ({"type", "message"}, set(), []),
    "skipped": ({"type", "message"}, set(), []),
    "system-out": (set(), set(), []),
}  # fmt: skip


def check_junit(text: str) -> ET.Element:
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, required, children = JUNIT[element.tag]
        assert required <= set(element.attrib) <= allowed, element.tag
        assert [c.tag for c in element] == sorted((c.tag for c in element), key=children.index), element.tag
    for element in root.iter("testsuite"):
        cases = element.findall("testcase")
        assert int(element.get("tests", "")) == len(cases)
        for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(element.get(count, "")) == sum(case.find(tag) is not None for case in cases)
        assert re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?)?", element.get("timestamp", ""))
        assert re.fullmatch(r"\d+\.\d{3}", element.get("time", ""))
    return root


names = st.text(max_size=40)
verdicts = st.sampled_from(list(Verdict))
findings = st.builds(Finding, rule=names, severity=st.sampled_from(list(Severity)), message=names,
                     file=st.none() | names, line=st.none() | st.integers(1, 9999), help=st.none() | names)  # fmt: skip
metrics = st.builds(
    Metric, name=names, corpus=st.none() | names, value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    se=st.none() | st.floats(0, 1), low=st.none() | st.floats(0, 1), high=st.none() | st.floats(0, 1),
    limit=st.none() | st.floats(0, 1), n=st.integers(0, 10**7), limit_is=st.sampled_from([None, "max", "min"]),
    verdict=st.none() | verdicts, reason=st.none() | names,
)  # fmt: skip
anything = st.lists(
    st.builds(
        lambda name, verdict, found, more, reason: Checked(
            name=name, file=name or None,
            result=Result(artifact_sha256=SHA, policy=None, verdict=verdict, metrics=tuple(found), tool={}, host={},
                          findings=tuple(more), reason=reason),
        ),
        names, verdicts, st.lists(metrics, max_size=4), st.lists(findings, max_size=3), st.none() | names,
    ),
    max_size=3,
)  # fmt: skip


@settings(deadline=None)
@given(anything, st.lists(findings, max_size=2))
def test_junit_is_what_the_schema_says_whatever_the_names(told: list[Checked], loose: list[Finding]) -> None:
    root = check_junit(junit_xml(told, loose))
    bad = sum(c.verdict is not Verdict.PASS for c in checks_of(told, loose))
    assert (
        sum(case.find(tag) is not None for case in root.iter("testcase") for tag in ("failure", "error", "skipped"))
        == bad
    )


def test_sarif_whole() -> None:
    run = sarif((THREE,))["runs"][0]
    assert run["tool"]["driver"]["rules"] == [
        {
            "id": "gate/kld_mean",
            "shortDescription": {"text": "gate: mean KL divergence"},
            "properties": {"tags": ["gate"]},
        }
    ]
    assert run["artifacts"] == [
        {
            "location": {"uri": "artifacts/toy%20Q2/toy-Q2_K.gguf"},
            "roles": ["analysisTarget"],
            "hashes": {"sha-256": SHA},
        }
    ]
    failed, open_ = run["results"]
    assert (failed["kind"], failed["level"], failed["ruleIndex"]) == ("fail", "error", 0)
    assert failed["message"]["text"] == (
        "toy-Q2_K: mean KL divergence on prose: 0.02 ± 0.002, limit 0.01 (5,100 tokens)"
    )
    assert (open_["kind"], open_["level"]) == ("open", "none")
    assert failed["partialFingerprints"] != open_["partialFingerprints"]
    assert run["invocations"] == [{"executionSuccessful": True}]


def test_sarif_says_where_and_what_could_not_be_measured() -> None:
    log = sarif((checked(verdict=Verdict.ERROR, reason="crashed"),), FINDINGS)
    run = log["runs"][0]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"] == "toy-Q2_K: crashed"
    lint = next(r for r in run["results"] if r["ruleId"] == "lint/unpinned")
    assert lint["level"] == "warning"
    assert lint["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "a%2Cb%3Ac.sh"}, "region": {"startLine": 3},
    }  # fmt: skip


def test_a_fingerprint_stays_when_the_figure_changes() -> None:
    first, other = (sarif((checked(metric(value=v)),))["runs"][0]["results"][0] for v in (0.02, 0.03))
    assert first["partialFingerprints"] == other["partialFingerprints"]


@settings(deadline=None)
@given(anything, st.lists(findings, max_size=2))
def test_sarif_is_what_its_models_say_and_its_own_rules_hold(told: list[Checked], loose: list[Finding]) -> None:
    log = json.loads(json.dumps(sarif(told, loose), allow_nan=False))
    sarif_pydantic.Sarif.model_validate(log)
    assert log["version"] == "2.1.0"
    for run in log["runs"]:
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len(rules) == len(set(rules))
        for result in run["results"]:
            assert rules[result["ruleIndex"]] == result["ruleId"]
            assert (result["kind"] == "fail") or (result["level"] == "none")  # 3.27.10
            for location in result["locations"]:
                uri = location["physicalLocation"]["artifactLocation"]["uri"]
                assert re.fullmatch(r"[\x21-\x7e]*", uri)


def test_annotations_whole() -> None:
    assert github_annotations((THREE,), FINDINGS) == [
        "::error file=artifacts/toy Q2/toy-Q2_K.gguf,title=toy-Q2_K%3A mean KL divergence on prose::"
        "0.02 ± 0.002, limit 0.01 (5,100 tokens)",
        "::error title=scan/not-finite::NaN in blk.0%0A100%25 of it",
        "::warning file=artifacts/toy Q2/toy-Q2_K.gguf,title=toy-Q2_K%3A mean KL divergence on chat::"
        "inconclusive: 0.01 ± 0.002, limit 0.01 (5,100 tokens)",
        "::warning file=a%2Cb%3Ac.sh,line=3,title=lint/unpinned::no revision%0Aadd @<commit>",
    ]


def test_at_most_ten_annotations_of_a_kind() -> None:
    many = [Finding(rule="r", severity=Severity.ERROR, message=f"m{n}") for n in range(25)]
    lines = github_annotations((), many)
    assert len(lines) == 10
    assert lines[8] == "::error title=r::m8"
    assert lines[9] == "::error title=quantplan::and 16 more of this kind; the summary has them all"
    assert len(github_annotations((), many[:10])) == 10
    assert "more of this kind" not in github_annotations((), many[:10])[9]


@settings(deadline=None)
@given(anything, st.lists(findings, max_size=30))
def test_annotations_are_one_line_each_and_ten_of_a_kind_at_most(told: list[Checked], loose: list[Finding]) -> None:
    lines = github_annotations(told, loose)
    for line in lines:
        assert re.fullmatch(r"::(error|warning|notice) [^\r\n]*::[^\r\n]*", line)
        assert len(line) < 20_000
    for kind in ("error", "warning", "notice"):
        assert sum(line.startswith(f"::{kind} ") for line in lines) <= 10


def test_markdown_whole() -> None:
    passed = Checked(name="toy-Q8_0", result=Result(
        artifact_sha256=SHA, policy=None, verdict=Verdict.PASS, metrics=(PASSED,), tool={}, host={}, n_tokens=5100,
    ))  # fmt: skip
    assert (
        markdown((THREE, passed), FINDINGS[:1])
        == f"""<!-- quantplan -->
### quantplan: ❌ fail

| artifact | verdict | why | tokens |
|---|---|---|---|
| toy-Q2\\_K | ❌ fail | outside on prose |  |
| toy-Q8\\_0 | ✅ pass |  | 5,100 |

<details open><summary>toy-Q2_K</summary>

sha256 {SHA}, policy standard

| check | verdict | measured |
|---|---|---|
| mean KL divergence on code | ✅ pass | 0.002 ± 0.002, limit 0.01 (5,100 tokens) |
| mean KL divergence on prose | ❌ fail | 0.02 ± 0.002, limit 0.01 (5,100 tokens) |
| mean KL divergence on chat | ❔ inconclusive | 0.01 ± 0.002, limit 0.01 (5,100 tokens) |
| ppl\\_ratio on prose | reported | 1.02 ± 0.002 (5,100 tokens) |

</details>

<details><summary>toy-Q8_0</summary>

sha256 {SHA}

| check | verdict | measured |
|---|---|---|
| mean KL divergence on code | ✅ pass | 0.002 ± 0.002, limit 0.01 (5,100 tokens) |

</details>

#### Findings

- **warning** lint/unpinned a,b:c.sh:3: no revision (add &#64;&lt;commit&gt;)

"""
    )


def test_names_cannot_break_out_of_a_cell_or_call_anybody() -> None:
    nasty = Checked(name="a|b\n</summary><img src=x> @team `x`", result=THREE.result)
    text = markdown((nasty,))
    assert "<img" not in text
    assert "@team" not in text.replace("<summary>", "").split("</summary>")[0].split("<details")[0]
    assert r"| a\|b &lt;/summary&gt;&lt;img src=x&gt; &#64;team \`x\` | ❌ fail |" in text


def test_a_summary_is_cut_at_a_mebibyte_and_says_so() -> None:
    many = [Finding(rule=f"r{n}", severity=Severity.NOTE, message="é" * 900) for n in range(1000)]
    text = step_summary((), many)
    assert len(text.encode()) <= SUMMARY_BYTES
    assert len(text.encode()) > SUMMARY_BYTES - 4000
    found = re.search(r"\*\*Cut here: (\d+) of (\d+) lines did not fit", text)
    assert found is not None
    assert int(found[1]) + text.count("\n- **note** r") + 5 == int(found[2])
    assert len(step_summary((), many, used_bytes=SUMMARY_BYTES - 10_000).encode()) <= 10_000
    assert step_summary((), many, used_bytes=SUMMARY_BYTES) == ""


def test_cut_details_are_closed() -> None:
    whole = markdown((THREE,) * 50, limit=4000)
    assert len(whole) <= 4000
    assert whole.count("<details") == whole.count("</details>")
    assert "did not fit" in whole


def test_files_are_written_where_asked_and_the_summary_is_appended(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    targets = CiTargets(
        junit=tmp_path / "a" / "j.xml", sarif=tmp_path / "s.sarif", markdown=tmp_path / "m.md", github=True
    )
    lines = write_ci_files(targets, (THREE,), environment={"GITHUB_STEP_SUMMARY": str(summary)})
    assert lines == github_annotations((THREE,))
    assert (tmp_path / "a" / "j.xml").read_text() == junit_xml((THREE,))
    assert json.loads((tmp_path / "s.sarif").read_text()) == sarif((THREE,))
    assert (tmp_path / "m.md").read_text() == markdown((THREE,))
    assert summary.read_text() == "before\n" + step_summary((THREE,), used_bytes=7)
    assert write_ci_files(CiTargets(), (THREE,), environment={"GITHUB_STEP_SUMMARY": str(summary)}) == []
