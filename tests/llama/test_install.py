"""Installing: the order of things and what is left behind, with a small fake in place of the compiler."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quantplan.errors import ToolFailed, ToolMissing
from quantplan.llama import fetch, install, toolchain
from quantplan.llama.self_test import SelfTestResult
from quantplan.llama.types import TOOLS, Completed

GOOD = SelfTestResult(ok=True, crashed=False, failures=())
CRASH = SelfTestResult(ok=False, crashed=True, failures=("Q4_K_M: run Q4_K_M ended with status -11",))


class FakeBuild:
    """Stands for pip, cmake and ninja: ninja leaves the programs behind."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.flags: list[str] = []

    def __call__(self, argv: Sequence[str], **rest: Any) -> Completed:
        self.calls.append(tuple(argv))
        if "-S" in argv:
            flags = next(word for word in argv if word.startswith("-DCMAKE_PROJECT_ggml_INCLUDE=")).split("=", 1)[1]
            self.flags.append(Path(flags).read_text())
        elif "-C" in argv:
            binaries = Path(argv[argv.index("-C") + 1]) / "bin"
            binaries.mkdir(parents=True, exist_ok=True)
            for tool in TOOLS:
                (binaries / tool).write_text("#!/bin/sh\n")
        return Completed(argv=tuple(argv), returncode=0, seconds=0.0, peak_rss_bytes=None, stdout=(), stderr=())


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTPLAN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "llama.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf.py", "LICENSE", "src/llama-arch.cpp"):
            entry = tarfile.TarInfo(f"{install.TREE}/{name}")
            archive.addfile(entry, io.BytesIO(b""))
    monkeypatch.setattr(toolchain, "SDIST_SHA256", fetch.sha256(path))
    return path


def _install(sdist: Path, build: FakeBuild, results: list[SelfTestResult]) -> Any:
    said: list[str] = []
    request = install.Request(backend="cpu", sdist=sdist)
    return install.install(request, say=said.append, run=build, test=lambda *_a, **_k: results.pop(0)), said


def test_a_build_that_works_is_kept_and_not_repeated(sdist: Path) -> None:
    build = FakeBuild()
    tools, _ = _install(sdist, build, [GOOD])
    assert (tools.folder / "convert" / "convert_hf_to_gguf.py").is_file()
    assert tools.build.label == "b11312-0c1e570"
    assert build.flags == [""]
    before = len(build.calls)
    _install(sdist, build, [])
    assert len(build.calls) == before
    assert not list(toolchain.toolchains_folder().glob("*.partial*"))


def test_a_crash_leads_to_a_rebuild_without_amx_and_is_reported(sdist: Path) -> None:
    build = FakeBuild()
    tools, said = _install(sdist, build, [CRASH, GOOD])
    assert build.flags[0] == ""
    assert build.flags[1].count("-mno-amx-") == 3
    assert any("rebuilt after a crash" in note for note in tools.notes)
    assert any("self-test failed (native: Q4_K_M" in line for line in said)
    assert "-mno-amx-tile" in tools.options


def test_crashes_on_every_rung_leave_nothing(sdist: Path) -> None:
    with pytest.raises(ToolFailed, match="self-test"):
        _install(sdist, FakeBuild(), [CRASH] * len(install.RUNGS))
    assert [path.name for path in toolchain.toolchains_folder().iterdir() if path.is_dir()] == []


def test_wrong_numbers_are_no_crash_and_no_rebuild(sdist: Path) -> None:
    build = FakeBuild()
    wrong = SelfTestResult(ok=False, crashed=False, failures=("Q8_0: 9.1 nats a token where F32 has 3.2",))
    with pytest.raises(ToolFailed, match=r"9\.1 nats"):
        _install(sdist, build, [wrong])
    assert len(build.flags) == 1


def test_an_interrupted_install_leaves_nothing_that_looks_finished(sdist: Path) -> None:
    class Interrupted(FakeBuild):
        def __call__(self, argv: Sequence[str], **rest: Any) -> Completed:
            if "-C" in argv:
                raise KeyboardInterrupt
            return super().__call__(argv, **rest)

    with pytest.raises(KeyboardInterrupt):
        _install(sdist, Interrupted(), [GOOD])
    assert toolchain.managed_toolchains() == ()
    leftover = toolchain.toolchains_folder() / f"{install.Request(backend='cpu').key}.partial"
    leftover.mkdir()
    (leftover / "junk").touch()
    _install(sdist, FakeBuild(), [GOOD])
    assert not leftover.exists()


def test_two_installs_at_once_build_once(sdist: Path) -> None:
    build = FakeBuild()
    threads = [threading.Thread(target=_install, args=(sdist, build, [GOOD])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(build.flags) == 1
    assert len(toolchain.managed_toolchains()) == 1


def test_another_archive_is_refused(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "SDIST_SHA256", "0" * 64)
    with pytest.raises(Exception, match="sha256 is"):
        _install(sdist, FakeBuild(), [GOOD])


def test_no_compiler(sdist: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolMissing, match=r"C\+\+ compiler was not found"):
        _install(sdist, FakeBuild(), [GOOD])


def test_options_make_the_key() -> None:
    cpu, cuda = install.Request(backend="cpu"), install.Request(backend="cuda", cuda_architectures="90-real")
    assert cpu.key != cuda.key
    assert cpu.key == install.Request(backend="cpu").key
    assert "-DGGML_CUDA=ON" in cuda.options
    rooted = install.Request(backend="cuda", cuda_architectures="90-real", cuda_root=Path("/r"))
    assert rooted.key == cuda.key


@pytest.mark.tools
def test_self_test_passes_here_and_catches_a_crash(toolchain: Any, tmp_path: Path) -> None:
    """The real tools pass; a llama-perplexity that dies of a signal is told as a crash."""
    from quantplan.llama.self_test import self_test

    assert self_test(toolchain.programs) == GOOD
    crashing = tmp_path / "llama-perplexity"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    result = self_test({**toolchain.programs, "llama-perplexity": (str(crashing),)})
    assert result.crashed
    assert not result.ok
    assert result.failures[1] == "Q4_K_M: run Q4_K_M ended with status -11"
