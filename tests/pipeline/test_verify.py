"""An artifact against its own words: everything that can stop matching is changed once, and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_fixture import artifact

from quantplan.artifact.plan_file import SCHEMA as PLAN_SCHEMA
from quantplan.artifact.receipt import NAME, entry_of
from quantplan.artifact.results import Result, Verdict, write_result
from quantplan.errors import BadArtifact, BadValue, NoArtifact, ToolMissing
from quantplan.pipeline.verify import Verification, verify_artifact


def told(found: Verification) -> list[str]:
    return [f"{one.severity.value} {one.file}: {one.message}" for one in found.findings]


def test_a_whole_artifact(tmp_path: Path) -> None:
    found = verify_artifact(artifact(tmp_path / "a"))
    assert (found.ok, told(found), found.n_results, found.signature) == (True, [], 1, "none")
    assert verify_artifact(artifact(tmp_path / "s", split=1)).n_files == 3


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return changed


def _other_result(folder: Path) -> None:
    result = Result(artifact_sha256="0" * 64, policy=None, verdict=Verdict.PASS, metrics=(), tool={}, host={})
    write_result(folder, "gate", result)


def _broken_result(folder: Path) -> None:
    (folder / "results" / "bench-x.json").write_text("{")


def _plan(folder: Path) -> None:
    (folder / "plan.json").write_text(json.dumps({"schema": PLAN_SCHEMA}))


def _dangling(folder: Path) -> None:
    (folder / "m-Q4_K_M.gguf").unlink()
    (folder / "m-Q4_K_M.gguf").symlink_to(folder / "gone")


def _steps(folder: Path) -> None:
    receipt = json.loads((folder / NAME).read_text())
    receipt["steps"][0]["output"] = "another.gguf"
    (folder / NAME).write_text(json.dumps(receipt))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a changed byte": (change("m-Q4_K_M.gguf", lambda b: b[:-9] + b"x" + b[-8:]), "error m-Q4_K_M.gguf: sha256 is "),
    "cut short": (change("m-Q4_K_M.gguf", lambda b: b[:-9]), "error m-Q4_K_M.gguf: has "),
    "missing": (lambda f: (f / "m-Q4_K_M.gguf").unlink(), "error m-Q4_K_M.gguf: is named by the receipt and missing"),
    "a dead link": (_dangling, "error m-Q4_K_M.gguf: its link leads nowhere"),
    "another result": (_other_result, "is about another file"),
    "no result": (_broken_result, "error results/bench-x.json: is not a result"),
    "no plan": (_plan, "error plan.json: is not a plan file"),
    "no step": (_steps, "error artifact.json: no step of the receipt makes m-Q4_K_M.gguf"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_no_longer_matches_is_named(what: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a")
    edit, says = BROKEN[what]
    edit(folder)
    found = verify_artifact(folder)
    assert not found.ok
    assert any(says in line for line in told(found)), told(found)


def test_what_is_odd_and_not_wrong(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a")
    shutil.copy(folder / "m-Q4_K_M.gguf", folder / "other.gguf")
    found = verify_artifact(folder)
    assert found.ok
    assert told(found) == ["warning other.gguf: lies there and is not named by the receipt"]


def test_a_missing_part(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a", split=1)
    receipt = json.loads((folder / NAME).read_text())
    receipt["files"].pop()
    (folder / NAME).write_text(json.dumps(receipt))
    assert any("the receipt names no m-Q4_K_M-00003-of-00003.gguf" in line for line in told(verify_artifact(folder)))


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(NoArtifact):
        verify_artifact(tmp_path)
    (tmp_path / NAME).write_text("{")
    with pytest.raises(BadArtifact):
        verify_artifact(tmp_path)


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "quantplan", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env)


def test_the_command(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a")
    done = command("verify", folder / "m-Q4_K_M.gguf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder}  matches its receipt\n  1 file(s), ")
    (folder / "m-Q4_K_M.gguf").write_bytes(b"x")
    done = command("verify", folder, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], document["schema"]) == (4, False, "quantplan/verify/1")
    assert {one["rule"] for one in document["data"]["findings"]} == {"verify/size", "verify/structure"}


def key(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public half, as openssl would make them."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(made.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return private, public


def signed(tmp_path: Path) -> tuple[Path, Path, Any]:
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from quantplan.artifact.receipt import read_receipt
    from quantplan.artifact.sign import sign_artifact

    folder = artifact(tmp_path / "a")
    private, public = key(tmp_path, "own")
    sign_artifact(folder, read_receipt(folder), private_key=private)
    return folder, public, private


def test_a_signature_holds_for_these_files_and_this_key(tmp_path: Path) -> None:
    folder, public, _ = signed(tmp_path)
    assert verify_artifact(folder, public_key=public).signature == "holds"
    assert verify_artifact(folder).signature == "not checked"
    _other = key(tmp_path, "other")[1]
    found = verify_artifact(folder, public_key=_other)
    assert (found.ok, found.signature) == (False, "broken")
    result = Result(artifact_sha256=verify_artifact(folder).receipt.model_file.sha256, policy=None,
                    verdict=Verdict.PASS, metrics=(), tool={}, host={})  # fmt: skip
    write_result(folder, "bench", result)  # what is measured later does not break it
    assert verify_artifact(folder, public_key=public).signature == "holds"


def test_a_receipt_changed_with_its_file_breaks_the_signature(tmp_path: Path) -> None:
    """Somebody who replaces the model and writes its hash into the receipt."""
    folder, public, _ = signed(tmp_path)
    model = folder / "m-Q4_K_M.gguf"
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    receipt = json.loads((folder / NAME).read_text())
    receipt["files"] = [{"name": model.name, "sha256": entry_of(model).sha256, "bytes": model.stat().st_size}]
    (folder / NAME).write_text(json.dumps(receipt))
    shutil.rmtree(folder / "results")
    assert verify_artifact(folder).ok
    found = verify_artifact(folder, public_key=public)
    assert found.signature == "broken"
    assert any(line.startswith("error artifact.sig: ") and "does not hold" in line for line in told(found))


def test_signing_refuses_what_does_not_match_and_what_is_no_key(tmp_path: Path) -> None:
    folder, public, private = signed(tmp_path)
    from quantplan.artifact.receipt import read_receipt
    from quantplan.artifact.sign import sign_artifact

    with pytest.raises(BadValue, match="cannot sign"):
        sign_artifact(folder, read_receipt(folder), private_key=public)
    (folder / "m-Q4_K_M.gguf").write_bytes(b"x")
    done = command("sign", folder, "--key", private)
    assert done.returncode == 4
    assert "it was not signed" in done.stderr


def test_a_key_where_nothing_is_signed(tmp_path: Path) -> None:
    pub = tmp_path / "x.pub"
    pub.write_text("x")
    found = verify_artifact(artifact(tmp_path / "a"), public_key=pub)
    assert told(found) == ["error artifact.sig: a key is given, and the artifact is not signed"]


def test_without_the_extra_the_hint_names_it() -> None:
    from quantplan.cli.hints import hint_for

    assert hint_for(ToolMissing(tool="the sign extra")) == "pip install 'quantplan[sign]'"
