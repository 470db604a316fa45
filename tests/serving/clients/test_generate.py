"""What is generated: the plan's numbers in one place, the same bytes every time, formatted, typed, without a key."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from command_line import refused, run
from serving.clients.conftest import write_client
from serving.clients.node_driver import NodeDriver
from serving.tiny_plan import bare_plan

from quantplan.artifact.plan_file import Figure, Plan, write_plan
from quantplan.artifact.store import Artifact
from quantplan.errors import BadValue
from quantplan.places import data_file
from quantplan.serving.clients.generate import Language, client_files
from quantplan.serving.clients.limits import Timeouts, checked_url, client_limits

ROOT = Path(__file__).resolve().parents[3]


def figure(value: float) -> Figure:
    return Figure(value=value, low=value / 2, high=value * 2, origin="measured")


def fast_plan(**changes: Any) -> Plan:
    plan = bare_plan(n_ctx_per_slot=8192, n_parallel=4, decode_tokens_per_s=figure(80.0),
                     prefill_tokens_per_s=figure(2000.0))  # fmt: skip
    return replace(plan, **changes)


def test_the_limits_are_the_plans() -> None:
    """4 slots of 8192 tokens at 1000 tokens/s read and 40 written at the least."""
    limits = client_limits(fast_plan(), sha256="ab", base_url="https://host/v1/")
    assert (limits.model, limits.artifact_sha256, limits.base_url) == ("quantplan-tiny", "ab", "https://host")
    assert (limits.n_ctx, limits.slots, limits.max_tokens) == (8192, 4, 8192)
    assert limits.expected_first_token_s == 32.77  # 4 × 8192 / 1000
    assert limits.expected_per_token_s == 0.1  # 4 / 40
    first = 1704.0  # 2 × (32.768 + 8192 × 0.1), rounded up
    assert limits.timeouts == Timeouts(
        connect_s=5.0, count_s=30.0, first_token_s=first, between_tokens_s=10.0, total_s=first + 1639.0
    )


def test_without_a_predicted_speed_the_waits_are_the_gateways() -> None:
    limits = client_limits(bare_plan(), sha256=None, base_url="http://h", max_tokens=100)
    assert (limits.expected_first_token_s, limits.expected_per_token_s, limits.max_tokens) == (None, None, 100)
    assert limits.timeouts.first_token_s == 600.0
    assert limits.timeouts.total_s == 3600.0


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "http://h:port", "http://h/a b", "http://h/?q=1", "http://h/\n"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadValue):
        checked_url(url)


def test_a_password_is_neither_written_nor_repeated() -> None:
    with pytest.raises(BadValue) as raised:
        checked_url("http://me:hunter2@host")
    assert "hunter2" not in str(raised.value)


def test_python_has_them(tmp_path: Path) -> None:
    limits = client_limits(fast_plan(), sha256="ab" * 32, base_url="http://h:1")
    text = client_files(Language.PYTHON, limits)["quantplan_client/limits.py"]
    (tmp_path / "limits.py").write_text(text)
    told = subprocess.run(
        [sys.executable, "-c", "import json, limits, dataclasses as d; print(json.dumps(d.asdict(limits.LIMITS)))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(told) == asdict(limits)


@pytest.mark.clients
def test_typescript_has_them(node: NodeDriver) -> None:
    limits = client_limits(bare_plan(), sha256="ab" * 32, base_url="http://127.0.0.1:8080")
    told = node("limits")
    assert (told["model"], told["artifactSha256"], told["baseUrl"]) == (limits.model, "ab" * 32, limits.base_url)
    assert (told["nCtx"], told["slots"], told["maxTokens"]) == (limits.n_ctx, limits.slots, limits.max_tokens)
    waits = asdict(limits.timeouts)
    del waits["connect_s"]
    assert list(told["timeouts"].values()) == [1000 * value for value in waits.values()]
    retries = asdict(limits.retries)
    assert list(told["retries"].values()) == [retries.pop("tries"), *(1000 * value for value in retries.values())]


@pytest.mark.parametrize("language", Language)
def test_the_same_plan_gives_the_same_bytes_and_no_more_than_the_block_differs(language: Language) -> None:
    limits = client_limits(fast_plan(), sha256=None, base_url="http://h")
    one, other = client_files(language, limits), client_files(language, limits)
    assert list(one.items()) == list(other.items())
    changed = client_files(language, client_limits(bare_plan(), sha256=None, base_url="http://h"))
    for name, text in one.items():
        mark = "plan:end"
        assert text.split(mark)[-1] == changed[name].split(mark)[-1]
        assert text.endswith("\n") or not text
        assert "\t" not in text
        assert str(ROOT) not in text


def test_names_with_quotes_stay_strings() -> None:
    plan = bare_plan(model='a"b\\c\nimport os #')
    limits = client_limits(plan, sha256=None, base_url="http://h")
    text = client_files(Language.PYTHON, limits)["quantplan_client/limits.py"]
    space: dict[str, Any] = {"__name__": "limits"}
    sys.modules["limits"] = ModuleType("limits")
    try:
        exec(compile(text, "limits.py", "exec"), space)
    finally:
        del sys.modules["limits"]
    assert space["LIMITS"].model == plan.model
    assert json.dumps(plan.model) in client_files(Language.TYPESCRIPT, limits)["quantplan-client.ts"]


def test_python_is_formatted_linted_and_typed(tmp_path: Path) -> None:
    """As it is written, in a folder of its own: ruff's default rules and mypy --strict."""
    folder = write_client(tmp_path, Language.PYTHON, fast_plan())
    (folder / "use.py").write_text(
        "from quantplan_client import Client, Piece\n\n"
        "with Client() as client:\n"
        '    text: str = client.chat([{"role": "user", "content": "a"}], max_tokens=3).text\n'
        '    with client.stream_chat([{"role": "user", "content": "a"}]) as pieces:\n'
        "        found: list[Piece] = list(pieces)\n"
    )
    for argv in (
        ["ruff", "format", "--isolated", "--line-length", "120", "--check", "quantplan_client"],
        ["ruff", "check", "--isolated", "--target-version", "py310", "--line-length", "120", "."],
    ):
        done = subprocess.run([sys.executable, "-m", *argv], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder / "wrong.py").write_text(
        "from quantplan_client import Client\n\n"
        'Client().chat([{"role": "robot", "content": "a"}])\nClient().chat([], maxtokens=3)\n'
    )
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "/dev/null", "use.py", "wrong.py"]
    done = subprocess.run([*argv, "quantplan_client"], cwd=folder, capture_output=True, text=True, check=False)
    errors = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    assert errors == [["wrong.py", "3"], ["wrong.py", "4"]], done.stdout


@pytest.mark.tools
@pytest.mark.build
def test_the_command_writes_what_an_artifact_promises(tiny: Artifact, tmp_path: Path) -> None:
    key = "sk-never-written"
    done = run("export", "client", tiny.folder, "--lang", "python", "--output", tmp_path, "--json", cwd=tmp_path,
               LLAMA_API_KEY=key)  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads(data_file("schemas", "export-client-1.schema.json").read_text()))
    told = document["data"]
    sha256 = tiny.receipt.model_file.sha256
    assert told["limits"]["artifact_sha256"] == sha256
    assert f'artifact_sha256="{sha256}"' in (tmp_path / "quantplan_client" / "limits.py").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_text()]
    printed = run("export", "client", "--plan", tiny.folder / "plan.json", "--lang", "typescript", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert sha256 in printed.stdout


def test_the_command_refuses_what_nobody_validated(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_plan(plan, fast_plan())
    ask = ("export", "client", "--plan", plan, "--lang", "typescript")
    refused(run(*ask, cwd=tmp_path), 4, "has no receipt and no gate result")
    allowed = run(*ask, "--allow-unvalidated", "--base-url", "https://llm.example/v1", cwd=tmp_path)
    assert allowed.returncode == 0
    assert "WARNING" in allowed.stderr
    assert 'baseUrl: "https://llm.example",' in allowed.stdout
    python = ("export", "client", "--plan", plan, "--lang", "python", "--allow-unvalidated")
    refused(run(*python, cwd=tmp_path), 2, "10 files", "--output")
    refused(run(*ask, "--allow-unvalidated", "--base-url", "nonsense", cwd=tmp_path), 2, "is not http:// or https://")
    refused(run("export", "client", "--lang", "python", cwd=tmp_path), 2, "artifact")
