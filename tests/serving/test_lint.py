"""lint against a corpus: every planted finding on its line, none on a clean file, and mending that lasts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from quantplan.artifact.plan_file import Plan
from quantplan.errors import BadValue
from quantplan.serving.lint.check import lint_paths, lint_source, mend
from quantplan.serving.lint.source import Kind, kind_of, read_source, source_of
from quantplan.serving.lint.texts import SAYINGS

CORPUS = Path(__file__).parents[1] / "data" / "lint"
EXPECTED = json.loads((CORPUS / "expected.json").read_text())
ROOT = Path(__file__).parents[2]


def found_in(path: Path) -> list[list[object]]:
    return [[finding.line, finding.rule.removeprefix("lint/")] for finding in lint_paths([path]).findings]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_planted_finding_is_found_on_its_line(name: str) -> None:
    assert found_in(CORPUS / "bad" / name) == EXPECTED[name]


@pytest.mark.parametrize("path", sorted((CORPUS / "clean").iterdir()), ids=lambda path: path.name)
def test_a_clean_file_raises_no_alarm(path: Path) -> None:
    assert lint_paths([path]).findings == ()


def test_the_corpus_is_large_enough_and_has_every_saying_twice() -> None:
    bad, clean = list((CORPUS / "bad").iterdir()), list((CORPUS / "clean").iterdir())
    assert len(bad) + len(clean) >= 40 and len(clean) >= 15 and {path.name for path in bad} == set(EXPECTED)
    times = Counter(rule for rows in EXPECTED.values() for _, rule in rows)
    assert {saying.rule for saying in SAYINGS if times[saying.rule] < 2} == set()


SHARED = {
    "host-setup.sh": {"swappiness", "vfs-cache-pressure", "fallocate-swap"},
    "build-llama.sh": {"moved-repository", "cpu-only-build"},
    "download-convert.sh": {"hf-command", "resume-download", "converter-outtype"},
    "inference-engine.service": {"vllm-api-server", "no-receipt", "no-key", "memlock-without-mlock",
                                 "unit-not-hardened", "no-memory-limit", "missing-service", "no-contract-check"},
    "inference.env": {"hf-transfer", "omp-threads"},
    "Dockerfile": {"cuda-variable", "cpu-only-pip", "runs-as-root", "no-digest", "public-bind-without-key",
                   "no-healthcheck", "unpinned"},
    "docker-compose.yml": {"compose-version", "compose-runtime", "published-everywhere", "public-bind-without-key",
                           "no-healthcheck", "no-memory-limit", "no-restart-limit", "concurrency-one-model"},
    "server.py.txt": {"no-route", "global-llama"},
    "api.py.txt": {"chat-prompt", "client-context-limit", "characters-for-tokens", "blocking-in-async"},
    "quickstart.sh": {"old-cuda-option", "public-bind-without-key", "chat-prompt"},
    "client.ts": {"retries-everything", "no-timeout", "no-streaming", "no-context-check", "no-jitter"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SHARED))
def test_templates_that_people_copy(name: str, shared: Path) -> None:
    rules = {str(rule) for _, rule in found_in(shared / "lint" / name)}
    assert rules >= SHARED[name]


# ---- mending


@pytest.mark.parametrize("path", sorted((CORPUS / "bad").iterdir()), ids=lambda path: path.name)
def test_mending_removes_findings_adds_none_and_lasts(path: Path) -> None:
    source = read_source(path, shown=path.name)
    assert source is not None
    mended = source_of(source.path, source.kind, mend(source))
    before = Counter(finding.rule for finding in lint_source(source))
    after = Counter(finding.rule for finding in lint_source(mended))
    assert not after - before
    assert mend(mended) == mended.text
    mendable = {"moved-repository", "resume-download", "hf-command", "old-cuda-option", "compose-version",
                "published-everywhere"}  # fmt: skip
    assert not {rule for rule in after if rule.removeprefix("lint/") in mendable}
    if source.kind in (Kind.COMPOSE, Kind.KUBERNETES):
        assert [type(found) for found in yaml.safe_load_all(mended.text)] == [dict] * len(source.documents)
    if source.kind is Kind.SHELL:
        subprocess.run(["bash", "-n"], input=mended.text, text=True, check=True)


def test_a_flag_at_the_end_of_a_continued_command_takes_its_backslash_along() -> None:
    text = "hf download X \\\n  --local-dir x \\\n  --resume-download\necho done\n"
    assert mend(source_of("x.sh", Kind.SHELL, text)) == "hf download X \\\n  --local-dir x\necho done\n"


def test_mending_writes_files_and_says_which(tmp_path: Path) -> None:
    shutil.copytree(CORPUS / "bad", tmp_path / "bad")
    linted = lint_paths([tmp_path / "bad"], fix=True)
    assert "compose-chat.yml" in {Path(name).name for name in linted.fixed}
    assert lint_paths([tmp_path / "bad"], fix=True).fixed == ()


# ---- against a plan


def test_what_contradicts_a_plan(a_plan: Plan) -> None:
    text = "[Service]\nExecStart=/bin/llama-server -m m --api-key-file k -c 8192 -np 4 -ctk q8_0 -t 8\n"
    plan = replace(a_plan, n_ctx_per_slot=8192, n_parallel=4, type_k="f16", threads=4)
    told = [f.message for f in lint_source(source_of("a.service", Kind.UNIT, text), plan=plan)]
    assert "context: the plan has 32768, this says 8192" in told
    assert "K cache: the plan has f16, this says q8_0" in told
    assert "threads: the plan has 4, this says 8" in told
    assert "V cache: the plan has f16, this leaves it to a default" in told
    assert "4 slots of 8,192 tokens need 32,768, the pool has 8,192" in told


@pytest.fixture
def a_plan(tmp_path: Path) -> Plan:
    from quantplan.artifact.plan_file import read_plan

    path = tmp_path / "plan.json"
    argv = [sys.executable, "-m", "quantplan", "recommend", "Qwen/Qwen3-0.6B", "--save", str(path), "--json"]
    subprocess.run(argv, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)})
    return read_plan(path)


# ---- reading files


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.service", "", Kind.UNIT), ("Dockerfile.cuda", "", Kind.DOCKERFILE), (".env.local", "", Kind.ENV),
        ("x.yml", "services:\n", Kind.COMPOSE), ("x.yaml", "apiVersion: v1\nkind: Pod\n", Kind.KUBERNETES),
        ("run", "#!/usr/bin/env bash\n", Kind.SHELL), ("api.py.txt", "", Kind.PYTHON), ("notes.md", "", None),
        ("data.csv", "llama", None),
    ],
)  # fmt: skip
def test_what_a_file_is(name: str, text: str, kind: Kind | None) -> None:
    assert kind_of(Path(name), text) is kind


def test_a_path_that_is_not_there_or_not_for_lint(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="is not there"):
        lint_paths([tmp_path / "none"])
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\0")
    with pytest.raises(BadValue, match="is no unit, compose file"):
        lint_paths([tmp_path / "a.bin"])
    assert lint_paths([tmp_path]).n_files == 0


# ---- the command


def lint(*args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "quantplan", "lint", *args]
    return subprocess.run(argv, check=False, capture_output=True, text=True, cwd=ROOT)


def test_the_command_prints_line_reason_and_fix() -> None:
    done = lint("tests/data/lint/bad/numa.sh")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout == (
        "tests/data/lint/bad/numa.sh:2: note: the KV cache is allocated whole at the start [kv-grows]\n"
        "    its size is that of --ctx-size, whatever the requests are\n"
        "tests/data/lint/bad/numa.sh:2: note: the kernel does not swap VRAM to disk: the allocation fails "
        "[vram-swapped]\n"
        "    plan for what fits: quantplan recommend\n"
        "tests/data/lint/bad/numa.sh:3: warning: taskset binds CPUs, not memory [taskset-numa]\n"
        "    numactl --cpunodebind=N --membind=N … --numa numactl\n"
        "1 file read: 3 findings\n"
    )
    clean = lint("tests/data/lint/clean")
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "16 files read: nothing found\n", "")


def test_json_and_sarif_carry_every_finding(tmp_path: Path) -> None:
    sarif = tmp_path / "lint.sarif"
    done = lint("tests/data/lint/bad", "--json", "--sarif", str(sarif))
    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"], told["ok"]) == (4, "quantplan/lint/1", False)
    n_expected = sum(len(rows) for rows in EXPECTED.values())
    assert len(told["data"]["findings"]) == n_expected
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    assert len(results) == n_expected
    assert results[0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
