"""recommend --html and --png from the outside."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from command_line import run
from serving.openai_clients import node_program

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
MACHINE = "rtx3060+32GB"


def test_a_page_and_pictures_are_written_whole(tmp_path: Path) -> None:
    words = (
        "recommend",
        LLAMA,
        "--hardware",
        MACHINE,
        "--html",
        tmp_path / "sub" / "plan.html",
        "--png",
        tmp_path / "png",
    )
    done = run(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["plan"]["model"] == LLAMA
    pictures = [tmp_path / "png" / f"{name}.png" for name in ("memory", "context", "presets")]
    told = [line for line in done.stderr.splitlines() if not line.startswith("Warning")]
    assert told == [f"Page: {tmp_path / 'sub' / 'plan.html'}", *(f"Chart: {path}" for path in pictures)]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["plan.html"]
    for path in pictures:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "sub" / "plan.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 1_500_000
    assert re.findall(r"https?://[^\s\"'<]+", page) == ["http://www.w3.org/2000/svg"]  # a namespace, not an address
    assert "default-src 'none'" in page
    assert not re.search(r"\bon[a-z]+=\"|style=\"|<script src|<link rel=\"stylesheet", page)


def test_it_takes_little_time(tmp_path: Path) -> None:
    """Processor time of the whole process: a loaded machine says nothing about the page."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = run("recommend", LLAMA, "--hardware", "cpu+32GB", "--html", "p.html", cwd=tmp_path)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert min(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) < 5


def test_a_finished_gguf_has_one_preset(tmp_path: Path) -> None:
    from quantplan.llama.self_test import write_tiny_model

    write_tiny_model(tmp_path / "a&b <i>.gguf")
    done = run("recommend", "a&b <i>.gguf", "--html", "p.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<i>.gguf" not in page
    assert 'id="preset" min="0"' in page


@pytest.mark.parametrize(("place", "says"), [("file/p.html", "file"), (".", "directory")])
def test_a_page_that_cannot_be_written(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    done = run("recommend", LLAMA, "--html", place, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_scripts_are_scripts() -> None:
    """Each file on its own, as node reads it."""
    folder = Path(__file__).resolve().parents[2] / "quantplan" / "report"
    scripts = sorted(folder.glob("*.js"))
    assert len(scripts) == 5
    for script in scripts:
        assert subprocess.run([*node_program("node"), "--check", str(script)], check=False).returncode == 0
        assert len(script.read_text().splitlines()) <= 300
