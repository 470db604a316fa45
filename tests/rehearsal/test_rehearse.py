"""A dress rehearsal with the installed server; what it refuses; that nothing stays, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantplan.errors import DoesNotFit
from quantplan.hardware.detect import detect_host
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST
from quantplan.model.facts import TensorFacts
from quantplan.rehearsal.ask import Answer, Question, estimate
from quantplan.rehearsal.holes import remove_leftovers
from quantplan.rehearsal.rehearse import check_room, fill_with_random, rehearse
from quantplan.rehearsal.weightless import tensor_bytes, write_weightless
from quantplan.units import MIB

MODEL = "Qwen/Qwen3-0.6B"


def planned(**question: object) -> Answer:
    host = replace(detect_host(), gpus=())
    return estimate(MODEL, hardware=host, quant="Q4_K_M", n_ctx=2048, cache_ram_bytes=0, **question)  # type: ignore[arg-type]


@pytest.mark.tools
def test_what_was_planned_is_what_is_taken(toolchain: Toolchain, tmp_path: Path) -> None:
    found = rehearse(planned(), toolchain, n_prompt=32, n_decode=4, folder=tmp_path)
    own, told = found.planned.device(HOST), found.measured.device(HOST)
    for part in ("mapped_bytes", "repacked_bytes", "context_bytes"):
        assert abs(getattr(own, part) - getattr(told, part)) < MIB, part
    assert found.speed is not None
    assert found.speed.n_decoded == 4
    assert found.speed.decode_per_s > 0
    assert found.peak_anonymous_bytes is not None
    need = own.repacked_bytes + own.context_bytes + own.compute_bytes + own.output_bytes
    assert abs(found.peak_anonymous_bytes - need) < 96 * MIB
    assert list(tmp_path.iterdir()) == []
    assert found.weights == "zeros"
    json.dumps(found.to_json()["notes"])


@pytest.mark.tools
def test_random_weights_and_a_measured_disk(toolchain: Toolchain, tmp_path: Path) -> None:
    host = replace(detect_host(), gpus=())
    answer = estimate("quantplan-tiny", hardware=host, n_ctx=512, cache_ram_bytes=0)
    found = rehearse(answer, toolchain, random=True, n_prompt=8, n_decode=2, disk_bytes_per_s=MIB, folder=tmp_path)
    assert found.weights == "random"
    assert found.speed is not None
    assert found.speed.n_decoded == 2
    n_bytes = sum(tensor_bytes(tensor) for tensor in answer.tensors)
    assert found.load_s is not None
    assert n_bytes / MIB <= found.load_s < n_bytes / MIB + 1  # at 1 MiB/s; the header is less than 1 MiB
    assert list(tmp_path.iterdir()) == []


def test_random_data_fills_the_hole_behind_the_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = (TensorFacts(name="token_embd.weight", shape=(256, 4096), type_name="F32"),)
    size = write_weightless(path, {"general.architecture": "llama"}, tensors)
    before = path.read_bytes()[: size - 256 * 4096 * 4]
    fill_with_random(path)
    data = path.read_bytes()
    assert len(data) == size
    assert data.startswith(before)
    assert data[-4096:].count(0) < 256


def test_what_does_not_fit_is_refused_before_any_start() -> None:
    answer = planned()
    poor = tuple(replace(room, free_bytes=100 * MIB) for room in answer.rooms)
    with pytest.raises(DoesNotFit) as caught:
        check_room(replace(answer, rooms=poor))
    assert caught.value.device == HOST
    assert caught.value.need_bytes > 500 * MIB


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"{gone.pid}-1.gguf").touch()
    (tmp_path / f"{os.getpid()}-1.gguf").touch()
    (tmp_path / "mine.gguf").touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{os.getpid()}-1.gguf", "mine.gguf"]


@pytest.mark.tools
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_killed_rehearsal_leaves_no_server(toolchain: Toolchain, tmp_path: Path) -> None:
    folder = Path(toolchain.programs["llama-server"][0]).parent
    argv = [sys.executable, "-m", "quantplan", "rehearse", MODEL, "--quant", "Q4_K_M", "--ctx", "2048", "--decode",
            "4000", "--cache-ram", "0", "--llama", str(folder)]  # fmt: skip
    child = subprocess.Popen(argv, env={**os.environ, "QUANTPLAN_CACHE": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    server = None
    deadline = time.monotonic() + 60
    while server is None and time.monotonic() < deadline and child.poll() is None:
        server = next((pid for pid in _children(child.pid) if "llama-server" in _command(pid)), None)
        time.sleep(0.1)
    assert server is not None
    child.send_signal(signal.SIGKILL)
    child.wait()
    while Path(f"/proc/{server}").exists() and _command(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "llama-server" not in _command(server)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""


def test_question_is_what_the_server_would_do() -> None:
    asked = Question()
    assert (asked.n_ctx, asked.n_parallel, asked.flash_attn, asked.reserve) == (None, None, "auto", "server")
