"""Steps: atomic, recorded, skipped only when provably done. The tools are small real programs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from quantplan.errors import DiskFull, ToolFailed
from quantplan.llama.process import run_tool
from quantplan.pipeline.files import hash_of
from quantplan.pipeline.record import Record
from quantplan.pipeline.step_log import log_file
from quantplan.pipeline.steps import NEVER, NotWhole, Step, run_step, shown, stale, verify_gguf

WRITE = "import sys; open(sys.argv[1], 'ab').write(b'GGUF' + sys.argv[2].encode())"


def step(
    folder: Path, record: Record, *, code: str = WRITE, word: str = "x", build: str = "b1", **more: object
) -> Step:
    (folder / "in").write_text("input") if not (folder / "in").exists() else None
    argv = (sys.executable, "-c", code, "out.partial", word)
    made = Step(
        name="quantize", argv=argv, shown_argv=shown(argv, folder=folder), inputs=(record.entry(folder / "in"),),
        output="out", tool_build=build,
    )  # fmt: skip
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def run(folder: Path, **options: object) -> None:
    record = Record(folder / "run.json")
    made = step(folder, record, **options)  # type: ignore[arg-type]
    run_step(made, folder=folder, record=record, run=run_tool, tell=lambda name, what: None)


def why(folder: Path, **options: object) -> str | None:
    record = Record(folder / "run.json")
    return stale(step(folder, record, **options), record.known("out"))  # type: ignore[arg-type]


def test_a_finished_step_is_known(tmp_path: Path) -> None:
    assert why(tmp_path) == NEVER
    run(tmp_path)
    assert (tmp_path / "out").read_bytes() == b"GGUFx"
    assert why(tmp_path) is None
    record = Record(tmp_path / "run.json")
    known = record.known("out")
    assert known is not None
    assert record.intact(tmp_path / "out", known.output)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"word": "y"}, "its command has changed: x → y"),
        ({"build": "b2"}, "its tool has changed: b1 → b2"),
        ({"input": "other"}, "an input has changed: in"),
        ({"record": "{"}, NEVER),
    ],
)
def test_what_is_said_of_a_change(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    run(tmp_path)
    for name, file in (("input", "in"), ("record", "run.json")):
        if name in change:
            (tmp_path / file).write_text(change.pop(name))
    assert why(tmp_path, **change) == reason


def test_a_changed_output_is_seen_even_with_its_old_times(tmp_path: Path) -> None:
    """utime(2) sets the time of modification back; that of the change of the inode it cannot."""
    import os

    run(tmp_path)
    before = (tmp_path / "out").stat()
    (tmp_path / "out").write_bytes(b"GGUFz")
    os.utime(tmp_path / "out", ns=(before.st_atime_ns, before.st_mtime_ns))
    record = Record(tmp_path / "run.json")
    known = record.known("out")
    assert known is not None
    assert not record.intact(tmp_path / "out", known.output)


def test_what_was_not_synced_is_not_trusted_after_a_restart(tmp_path: Path) -> None:
    run(tmp_path, scratch=True)
    known = Record(tmp_path / "run.json").known("out")
    assert known is not None
    assert known.is_trusted
    assert not dataclasses.replace(known, boot="another start").is_trusted
    run(tmp_path, word="y")
    lasting = Record(tmp_path / "run.json").known("out")
    assert lasting is not None
    assert lasting.boot is None


def test_a_failed_step_names_itself_and_leaves_no_file(tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'w').write('half'); print('no luck', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ToolFailed, match=r"quantize: python\S* ended with status 1\n  \| no luck"):
        run(tmp_path, code=code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "logs"]
    said = log_file(tmp_path, "quantize").read_text()
    assert "no luck" in said
    assert "# ToolFailed" in said


def test_success_without_a_file_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="no output file was written"):
        run(tmp_path, code="pass")


def test_zeros_where_the_header_belongs_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(NotWhole, match=r"left no whole GGUF: .*not a GGUF file"):
        run(tmp_path, code="import sys; open(sys.argv[1], 'wb').write(bytes(64))", verify=verify_gguf)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_failure_takes_no_old_output_for_new(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ToolFailed):
        run(tmp_path, code="raise SystemExit(1)")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_from_other_failures(tmp_path: Path) -> None:
    code = "import os, sys; open(sys.argv[1], 'w').write('half'); print(os.strerror(28)); sys.exit(1)"
    with pytest.raises(DiskFull, match=r"quantize: the disk is full: .*MiB free, 5 MiB needed"):
        run(tmp_path, code=code, expected_bytes=5 << 20)
    assert not (tmp_path / "out.partial").exists()


def test_a_tool_that_may_write_no_more_is_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE, as quotas and some batch systems set it: the tool dies of SIGXFSZ."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); open(sys.argv[1], 'wb').write(bytes(9000))"
    )
    with pytest.raises(DiskFull, match="quantize: the disk is full"):
        run(tmp_path, code=code)


def test_recorded_argv_holds_no_local_path(tmp_path: Path) -> None:
    argv = ("/opt/x/llama-quantize", str(tmp_path / "a.gguf"), "b.gguf.partial", "/data/other/c.txt", "Q4_K_M")
    assert shown(argv, folder=tmp_path) == ("llama-quantize", "a.gguf", "b.gguf", "c.txt", "Q4_K_M")


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "1").write_bytes(b"a")
    (folder / "2").write_bytes(b"b")
    first = hash_of(folder)
    (folder / "2").rename(folder / "3")
    assert hash_of(folder) != first
    record = Record(tmp_path / "run.json")
    assert record.entry(folder).bytes == 2
