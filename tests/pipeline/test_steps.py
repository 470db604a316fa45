"""Steps: atomic, recorded, skipped only when provably done. The tools are small real programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantplan.errors import ToolFailed
from quantplan.llama.process import run_tool
from quantplan.pipeline.record import Record
from quantplan.pipeline.steps import NotWhole, Step, run_step, shown, verify_gguf

WRITE = "import sys; open(sys.argv[1], 'ab').write(b'GGUF' + sys.argv[2].encode())"


def step(folder: Path, record: Record, *, code: str = WRITE, word: str = "x", build: str = "b1") -> Step:
    (folder / "in").write_text("input") if not (folder / "in").exists() else None
    argv = (sys.executable, "-c", code, "out.partial", word)
    return Step(
        name="quantize", argv=argv, shown_argv=shown(argv, folder=folder), inputs=(record.entry(folder / "in"),),
        output="out", tool_build=build, verify=verify_gguf,
    )  # fmt: skip


def run(folder: Path, **options: str) -> list[str]:
    said: list[str] = []
    record = Record(folder / "run.json")
    run_step(
        step(folder, record, **options), folder=folder, record=record, run=run_tool,
        tell=lambda name, what: said.append(f"{name}: {what}"),
    )  # fmt: skip
    return said


def test_a_step_runs_once(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == "quantize: running"
    assert (tmp_path / "out").read_bytes() == b"GGUFx"
    assert run(tmp_path) == ["quantize: unchanged, skipped"]


@pytest.mark.parametrize("change", ["argv", "tool", "input", "output", "record"])
def test_any_change_runs_it_again(tmp_path: Path, change: str) -> None:
    run(tmp_path)
    options = {"argv": {"word": "y"}, "tool": {"build": "b2"}}.get(change, {})
    if change == "input":
        (tmp_path / "in").write_text("other")
    if change == "output":
        (tmp_path / "out").write_bytes(b"GGUFz")
    if change == "record":
        (tmp_path / "run.json").write_text("{")
    assert run(tmp_path, **options)[0] == "quantize: running"


def test_a_failed_step_names_itself_and_leaves_no_file(tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'w').write('half'); print('no space', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ToolFailed, match=r"quantize: python\S* ended with status 1\n  \| no space"):
        run(tmp_path, code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "run.json"]


def test_success_without_a_file_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="no output file was written"):
        run(tmp_path, code="pass")


def test_zeros_where_the_header_belongs_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(NotWhole, match="left no whole GGUF"):
        run(tmp_path, code="import sys; open(sys.argv[1], 'wb').write(bytes(64))")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_failure_takes_no_old_output_for_new(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ToolFailed):
        run(tmp_path, code="raise SystemExit(1)")
    assert not (tmp_path / "out").exists()


def test_recorded_argv_holds_no_local_path(tmp_path: Path) -> None:
    argv = ("/opt/x/llama-quantize", str(tmp_path / "a.gguf"), "b.gguf", "/data/other/c.txt", "Q4_K_M")
    assert shown(argv, folder=tmp_path) == ("llama-quantize", "a.gguf", "b.gguf", "c.txt", "Q4_K_M")
