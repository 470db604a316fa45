"""Processes of this host, by what this test's own children do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quantplan.hardware import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"),
                                              (socket.AF_INET6, "::1")])  # fmt: skip
def test_who_listens(family: int, host: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            assert family == socket.AF_INET6  # a host without IPv6
            return
        server.listen()
        port = server.getsockname()[1]
        found = processes.listeners(port)
        assert [(one.address, one.pid) for one in found] == [(host, os.getpid())]
        assert found[0].is_loopback is (host != "0.0.0.0")
    assert processes.listeners(port) == ()


def test_what_a_process_was_told() -> None:
    words = ("-c", "print(1, flush=True); input()", "a b", "")
    child = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"X": "1=2"})
    assert child.stdout is not None and child.stdout.readline() == b"1\n"  # until exec a child has its parent's words
    try:
        argv = processes.argv_of(child.pid)
        assert argv is not None
        assert argv[1:] == words
        assert processes.environment_of(child.pid) == {"X": "1=2"}
        assert child.pid in processes.children_of(os.getpid())
        assert processes.program_of(child.pid) == Path(sys.executable).resolve()
        started, mine = processes.started_ticks(child.pid), processes.started_ticks(os.getpid())
        assert started is not None
        assert mine is not None
        assert started >= mine
    finally:
        child.communicate(b"\n")
    assert processes.argv_of(child.pid) is None
    assert processes.started_ticks(child.pid) is None


MAPPER = "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1); print(1, flush=True); input()"


def test_a_mapped_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"first" * 1000)
    child = subprocess.Popen([sys.executable, "-c", MAPPER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        (found,) = processes.mapped_files(child.pid, suffix=".gguf") or ()
        assert (found.path, found.replaced) == (str(path), False)
        other = tmp_path / "other"
        other.write_bytes(b"second" * 1000)
        other.replace(path)
        (found,) = processes.mapped_files(child.pid, suffix=".gguf") or ()
        assert found.replaced
        if os.geteuid() == 0:
            assert found.where.read_bytes() == b"first" * 1000
    finally:
        child.communicate(b"\n")


def test_the_largest_holder_comes_first() -> None:
    code = "x = bytearray(300 << 20); x[::4096] = x[::4096]; print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        holders = processes.largest_holders(1000)
        mine = next(holder for holder in holders if holder.pid == child.pid)
        assert mine.held_bytes >= 300 << 20
        assert list(holders) == sorted(holders, key=lambda holder: -holder.held_bytes)
        held = processes.anonymous_bytes(child.pid)
        assert held is not None
        assert 300 << 20 <= held < 400 << 20
    finally:
        child.communicate(b"\n")
