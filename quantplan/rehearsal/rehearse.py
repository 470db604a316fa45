"""A dress rehearsal: the server as planned, on this host, with a model that has no weights.

Memory and speed are measured; the time to load is not, since a hole is read from no disk: it is predicted from the
file's bytes and the disk's rate.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import DoesNotFit, NoDiskSpace, ToolFailed, ToolMissing
from quantplan.llama import measuring
from quantplan.llama.process import start_tool, stop_tool
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST, DeviceMemory, MemoryEstimate, Origin
from quantplan.rehearsal.ask import Answer
from quantplan.rehearsal.cgroup_limit import limited
from quantplan.rehearsal.companions import CompanionFiles, companion_files
from quantplan.rehearsal.engine_word import devices_of, free_port, settings_of, weightless_file
from quantplan.rehearsal.holes import holes_folder, remove_leftovers
from quantplan.rehearsal.watch import Watch
from quantplan.units import MIB

# Ends the server when the rehearsing process dies, also by SIGKILL: PR_SET_PDEATHSIG (1) survives execv.
_WITH_PARENT = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.execv(sys.argv[1],sys.argv[1:])"
_FIRST_TOKEN = 300  # of the synthetic vocabulary: past the specials and the 256 bytes
_MARGIN_BYTES = 64 * MIB  # the server itself: code, HTTP, vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The server's own timings of real requests."""

    n_prompt: int
    n_decoded: int
    prefill_per_s: float
    decode_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was planned and what was measured. `weights` is "zeros" or "random": never the model's own."""

    planned: MemoryEstimate
    measured: MemoryEstimate
    peak_anonymous_bytes: int | None
    peak_resident_bytes: int | None
    peak_gpu_bytes: tuple[int | None, ...]
    ready_s: float
    load_s: float | None  # predicted: file bytes over the disk's rate
    speed: Speed | None
    weights: str
    limit_bytes: int | None  # the memory limit it ran under, where cgroups allowed one
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "origin": Origin.MEASURED, "engine_build": self.measured.engine_build, "weights": self.weights,
            "ready_s": round(self.ready_s, 3), "predicted_load_s": self.load_s, "limit_bytes": self.limit_bytes,
            "peak_anonymous_bytes": self.peak_anonymous_bytes, "peak_resident_bytes": self.peak_resident_bytes,
            "peak_gpu_bytes": list(self.peak_gpu_bytes), "speed": self.speed, "notes": list(self.notes),
            "devices": [_both(device, self.measured.device(device.name)) for device in self.planned.devices],
        }  # fmt: skip


def _both(planned: DeviceMemory, measured: DeviceMemory) -> dict[str, object]:
    parts = ("model", "context", "compute", "output", "mapped", "repacked")
    return {
        "name": planned.name,
        "planned": {f"{part}_bytes": getattr(planned, f"{part}_bytes") for part in parts},
        "measured": {f"{part}_bytes": getattr(measured, f"{part}_bytes") for part in parts},
    }


def occupied_bytes(host: DeviceMemory) -> int:
    """What the start really takes of this host's RAM: anonymous memory, and the pages of the file that are read.

    A hole's pages are page cache like any other's.
    """
    anonymous = host.repacked_bytes + host.context_bytes + host.compute_bytes + host.output_bytes + host.extra_bytes
    return anonymous + max(host.mapped_bytes, 0) + _MARGIN_BYTES


def check_room(answer: Answer) -> int:
    """Bytes of RAM the rehearsal takes. Raises DoesNotFit when a device lacks the room for it."""
    host = answer.memory.device(HOST)
    need = occupied_bytes(host)
    for room in answer.rooms:
        asked = need if room.name == HOST else answer.memory.device(room.name).total_bytes
        if room.free_bytes is not None and asked > room.free_bytes:
            raise DoesNotFit(device=room.name, need_bytes=asked, free_bytes=room.free_bytes, what="the rehearsal")
    return need


def rehearse(
    answer: Answer, tools: Toolchain, *, random: bool = False, n_prompt: int = 256, n_decode: int = 32,
    disk_bytes_per_s: int | None = None, timeout_s: float = 300, folder: Path | None = None,
) -> Rehearsal:  # fmt: skip
    """Starts, asks and stops the server. Raises DoesNotFit, HolesFilled, NoDiskSpace, ToolMissing, ToolFailed."""
    need = check_room(answer)
    place = folder or holes_folder()
    remove_leftovers(place)
    with (
        weightless_file(answer.facts, answer.tensors, synthetic=True, folder=place) as path,
        companion_files(answer.companions, folder=place) as files,
    ):
        if random:
            fill_with_random(path)
        return _run(answer, tools, path, files, need, random, n_prompt, n_decode, disk_bytes_per_s, timeout_s)


def fill_with_random(path: Path) -> None:
    """Random data in the hole. Raises NoDiskSpace when the disk is too small for it."""
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    if size + 512 * MIB > free:
        raise NoDiskSpace(path=path.parent, need_bytes=size + 512 * MIB, free_bytes=free)
    block = os.urandom(4 * MIB)
    with path.open("r+b") as file:
        start = _header_end(path)
        file.seek(start)
        while (left := size - file.tell()) > 0:
            file.write(block[: min(left, len(block))])


def _header_end(path: Path) -> int:
    """Where the hole begins: the first 4 KiB boundary after the header's own blocks."""
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE)


def _run(
    answer: Answer, tools: Toolchain, path: Path, files: CompanionFiles, need: int, random: bool,
    n_prompt: int, n_decode: int, disk_bytes_per_s: int | None, timeout_s: float,
) -> Rehearsal:  # fmt: skip
    program = tools.programs.get("llama-server")
    if program is None:
        raise ToolMissing(tool="llama-server")
    port = free_port()
    settings = settings_of(path, answer.ctx, answer.placement, files)
    argv = measuring.measured_server(program, settings, host="127.0.0.1", port=port)
    size = path.stat().st_size
    notes: list[str] = []
    with limited(need + need // 4) as group, _server(argv, timeout_s) as (watch, ready_s):
        for mapped in (path, files.draft):  # the server has them mapped: nothing stays even when we are killed
            if mapped is not None:
                mapped.unlink(missing_ok=True)
        limit = group.admit(watch.pid)
        if limit is None:
            notes.append(f"no memory limit: {group.why}")
        speed = _ask(port, n_prompt, n_decode, timeout_s)
        watch.look(gpus=bool(answer.placement.devices))
        lines = watch.lines
        peaks = watch.peaks()
    memory = MemoryEstimate(devices=devices_of(lines, answer.placement), origin=Origin.MEASURED,
                            reserve="server", engine_build=tools.build.label)  # fmt: skip
    notes.append(
        "weights are random" if random else "weights are all zero: a mixture picks the same experts every time"
    )
    return Rehearsal(
        planned=answer.memory, measured=memory, peak_anonymous_bytes=peaks[0], peak_resident_bytes=peaks[1],
        peak_gpu_bytes=watch.gpu_peaks(), ready_s=ready_s,
        load_s=round(size / disk_bytes_per_s, 2) if disk_bytes_per_s else None, speed=speed,
        weights="random" if random else "zeros", limit_bytes=limit, notes=tuple(notes),
    )  # fmt: skip


@contextlib.contextmanager
def _server(argv: tuple[str, ...], timeout_s: float) -> Iterator[tuple[Watch, float]]:
    """The running server and the seconds until it was ready; stopped on the way out, whatever happens."""
    started = time.monotonic()
    command = (sys.executable, "-c", _WITH_PARENT, *argv) if sys.platform == "linux" else argv
    child = start_tool(command, step="rehearse")
    watch = Watch(child)
    try:
        while not watch.ready.wait(0.05) and child.poll() is None and time.monotonic() - started < timeout_s:
            watch.look()
        if not watch.ready.is_set():
            raise ToolFailed(step="rehearse", argv=argv, returncode=child.poll(), last_lines=tuple(watch.lines[-5:]))
        yield watch, time.monotonic() - started
    finally:
        stop_tool(child)
        watch.close()


def _ask(port: int, n_prompt: int, n_decode: int, timeout_s: float) -> Speed | None:
    """One real request of made-up tokens; the server's timings of it."""
    tokens = [_FIRST_TOKEN + i % 64 for i in range(max(n_prompt, 1))]
    body = json.dumps({"prompt": tokens, "n_predict": n_decode, "ignore_eos": True, "cache_prompt": False})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", data=body.encode(),
                                     headers={"Content-Type": "application/json"})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            told = json.load(response).get("timings", {})
    except (OSError, ValueError):
        return None
    return Speed(
        n_prompt=int(told.get("prompt_n", 0)), n_decoded=int(told.get("predicted_n", 0)),
        prefill_per_s=float(told.get("prompt_per_second", 0)), decode_per_s=float(told.get("predicted_per_second", 0)),
    )  # fmt: skip
