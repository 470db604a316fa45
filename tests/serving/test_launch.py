"""What is refused before a server starts, and what a real one that dies tells."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from serving.tiny_plan import bare_plan

from quantplan.artifact.receipt import Receipt, entry_of, write_receipt
from quantplan.artifact.results import Result, Verdict, write_result
from quantplan.artifact.store import find_artifact
from quantplan.errors import BadArtifact, PortInUse
from quantplan.serving.launch import check_port, healthy
from quantplan.serving.source import Served, admit


def artifact(folder: Path, verdict: Verdict | None) -> Served:
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF")
    file = entry_of(folder / "m.gguf")
    write_receipt(folder, Receipt(files=(file,), quant="Q4_K_M", source={}, tools={}, steps=(), texts=()))
    if verdict:
        result = Result(artifact_sha256=file.sha256, policy=None, verdict=verdict, metrics=(), tool={}, host={})
        write_result(folder, "gate", result)
    return Served(model=folder / "m.gguf", plan=bare_plan(), artifact=find_artifact(folder))


def test_a_pass_is_admitted(tmp_path: Path) -> None:
    said: list[str] = []
    admit(artifact(tmp_path / "a", Verdict.PASS), allow_unvalidated=False, say=said.append)
    assert said == []


@pytest.mark.parametrize("verdict", [None, Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_no_pass_is_refused_and_the_override_says_so(tmp_path: Path, verdict: Verdict | None) -> None:
    found = artifact(tmp_path / "a", verdict)
    said: list[str] = []
    with pytest.raises(BadArtifact):
        admit(found, allow_unvalidated=False, say=said.append)
    assert said == []
    admit(found, allow_unvalidated=True, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("WARNING: serving an artifact that is not validated, as asked: ")


def test_a_changed_file_is_refused_with_the_override_too(tmp_path: Path) -> None:
    found = artifact(tmp_path / "a", Verdict.PASS)
    found.model.write_bytes(b"GGUg")
    with pytest.raises(BadArtifact, match="sha256"):
        admit(found, allow_unvalidated=True, say=lambda _line: None)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port} is already in use"):
            check_port("127.0.0.1", port)
        assert not healthy(f"http://127.0.0.1:{port + 1 if port < 65535 else port - 1}")
    check_port("127.0.0.1", port)
