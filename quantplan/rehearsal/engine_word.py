"""The engine's own word on a configuration, asked with a model that has no weights.

Two voices: llama-fit-params, which sizes without allocating, for what it can express; and a real llama-server start,
for the rest. Each result names its voice by `reserve` and carries the build that said it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import CannotExpress, ToolFailed, ToolMissing
from quantplan.llama import measuring
from quantplan.llama.output import BufferLine
from quantplan.llama.process import Runner, run_tool, start_tool, stop_tool
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST, DeviceMemory, MemoryEstimate, Origin
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.rehearsal.companions import CompanionFiles, Companions, companion_files, own_and_companions
from quantplan.rehearsal.holes import holes_folder, require_holes
from quantplan.rehearsal.weightless import write_weightless
from quantplan.units import MIB

_ALL_LAYERS = 999
_READY = re.compile(r"server is listening|main: model loaded|all slots are idle")
_HOST_BUFFERS = ("CPU", "CPU_Mapped", "CPU_REPACK", "CUDA_Host", "ROCm_Host", "Vulkan_Host", "SYCL_Host")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWord:
    """What a real start said and took."""

    memory: MemoryEstimate
    buffers: tuple[BufferLine, ...]
    ready_s: float
    rss_anon_bytes: int | None
    lines: tuple[str, ...]


@contextlib.contextmanager
def weightless_file(
    facts: ModelFacts, tensors: Sequence[TensorFacts], *, synthetic: bool = False, folder: Path | None = None
) -> Iterator[Path]:
    """A weightless model for the length of a `with`; removed afterwards. Raises HolesFilled."""
    place = folder or holes_folder()
    require_holes(place)
    path = place / f"{os.getpid()}-{time.monotonic_ns()}.gguf"
    try:
        write_weightless(path, facts.metadata, tensors, vocab="synthetic" if synthetic else "none")
        yield path
    finally:
        path.unlink(missing_ok=True)


def settings_of(
    model: Path, ctx: ContextParams, placement: Placement, files: CompanionFiles | None = None
) -> measuring.MeasuredSettings:
    """The tools' flags of a configuration."""
    beside = files or CompanionFiles()
    return measuring.MeasuredSettings(
        model=model, n_ctx=ctx.n_ctx, n_batch=ctx.n_batch, n_ubatch=ctx.n_ubatch, n_parallel=ctx.n_parallel,
        kv_unified=ctx.unified, type_k=ctx.type_k, type_v=ctx.type_v, flash_attn=ctx.flash_attn,
        n_gpu_layers=_ALL_LAYERS if placement.n_gpu_layers is None else placement.n_gpu_layers,
        swa_full=ctx.swa_full, kv_offload=ctx.kv_offload, tensor_split=placement.tensor_split or (),
        n_cpu_moe=placement.n_cpu_moe, cpu_moe=placement.cpu_moe, overrides=placement.overrides,
        cache_ram_mib=max(ctx.cache_ram_bytes, 0) // MIB, mmproj=beside.mmproj, draft=beside.draft, lora=beside.lora,
    )  # fmt: skip


def cannot_express(ctx: ContextParams, companions: Companions | None = None) -> tuple[str, ...]:
    """What of a configuration llama-fit-params has no flag for."""
    said = []
    if ctx.unified and ctx.n_slots > 1:
        said.append("several slots sharing one cache")
    if ctx.n_draft:
        said.append("draft tokens")
    return (*said, *(companions.names if companions else ()))


def ask_fit_params(
    tools: Toolchain, model: Path, ctx: ContextParams, placement: Placement, *, companions: Companions | None = None,
    run: Runner = run_tool,
) -> MemoryEstimate:  # fmt: skip
    """llama-fit-params' word. Raises CannotExpress, ToolMissing, ToolFailed."""
    said = cannot_express(ctx, companions)
    if said:
        raise CannotExpress(what=said)
    argv = measuring.fit_params(_program(tools, "llama-fit-params"), settings_of(model, ctx, placement))
    done = run(argv, step="ask llama-fit-params", timeout_s=120)
    lines = measuring.parse_fit_params(done.stdout)
    if not lines:
        raise ToolFailed(step="ask llama-fit-params", argv=argv, returncode=done.returncode, last_lines=done.last_lines)
    devices = [
        DeviceMemory(name=line.device, model_bytes=line.model_bytes, context_bytes=line.context_bytes,
                     compute_bytes=line.compute_bytes)
        for line in lines
    ]  # fmt: skip
    return MemoryEstimate(
        devices=tuple(devices), origin=Origin.MEASURED, reserve="fit-params", engine_build=_build(tools)
    )


def ask_server(
    tools: Toolchain, model: Path, ctx: ContextParams, placement: Placement, *, companions: Companions | None = None,
    timeout_s: float = 120,
) -> ServerWord:  # fmt: skip
    """A real llama-server start on the weightless model, stopped as soon as it is ready. Raises ToolFailed.

    It allocates for real: the caller makes sure that it fits. With companions the model needs a vocabulary.
    """
    beside = companions or Companions()
    with companion_files(beside, folder=model.parent) as files:
        settings = settings_of(model, ctx, placement, files)
        argv = measuring.measured_server(_program(tools, "llama-server"), settings, host="127.0.0.1", port=free_port())
        started = _start(argv, timeout_s)
    own, _ = own_and_companions(started.lines)
    if not started.ready or not own:
        raise ToolFailed(step="start llama-server", argv=argv, returncode=started.returncode,
                         last_lines=started.lines[-5:])  # fmt: skip
    memory = MemoryEstimate(devices=devices_of(started.lines, placement), origin=Origin.MEASURED,
                            reserve="server", engine_build=_build(tools))  # fmt: skip
    return ServerWord(memory=memory, buffers=own, ready_s=started.took_s, rss_anon_bytes=started.rss_anon_bytes,
                      lines=started.lines)  # fmt: skip


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    ready: bool
    returncode: int | None
    took_s: float
    rss_anon_bytes: int | None
    lines: tuple[str, ...]


def _start(argv: Sequence[str], timeout_s: float) -> _Started:
    """Starts the server, waits until it is ready, stops it."""
    began = time.monotonic()
    child = start_tool(argv, step="start llama-server")
    lines: list[str] = []
    ready = threading.Event()
    readers = [threading.Thread(target=_read, args=(pipe, lines, ready), daemon=True)
               for pipe in (child.stdout, child.stderr)]  # fmt: skip
    try:
        for reader in readers:
            reader.start()
        while not ready.wait(0.05) and child.poll() is None and time.monotonic() - began < timeout_s:
            pass
        took = time.monotonic() - began
        anonymous = _rss_anon(child.pid) if ready.is_set() else None
    finally:
        returncode = stop_tool(child)
        for reader in readers:
            reader.join(timeout=5)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    return _Started(ready=ready.is_set(), returncode=returncode, took_s=took, rss_anon_bytes=anonymous,
                    lines=tuple(lines))  # fmt: skip


def devices_of(lines: Sequence[str], placement: Placement) -> tuple[DeviceMemory, ...]:
    """The server's buffers by device: GPUs in the plan's order, then the host. Companions' are `extra_bytes`."""
    buffers, beside = own_and_companions(lines)

    def total(names: Sequence[str], *kinds: str) -> int:
        return sum(b.n_bytes for b in buffers if b.device in names and b.kind in kinds)

    def extra(names: Sequence[str]) -> int:
        return sum(b.n_bytes for b in beside if b.device in names)

    gpus = [
        DeviceMemory(name=name, model_bytes=total((name,), "model"), context_bytes=total((name,), "KV", "RS"),
                     compute_bytes=total((name,), "compute"), output_bytes=total((name,), "output"),
                     extra_bytes=extra((name,)))
        for name in placement.devices
    ]  # fmt: skip
    repacked = total(("CPU_REPACK",), "model")
    host = DeviceMemory(
        name=HOST, model_bytes=total(_HOST_BUFFERS, "model"), context_bytes=total(_HOST_BUFFERS, "KV", "RS"),
        compute_bytes=total(_HOST_BUFFERS, "compute"), output_bytes=total(_HOST_BUFFERS, "output"),
        extra_bytes=extra(_HOST_BUFFERS),
        mapped_bytes=total(("CPU_Mapped",), "model"), repacked_bytes=repacked,
    )  # fmt: skip
    return (*gpus, host)


def _read(pipe: object, lines: list[str], ready: threading.Event) -> None:
    for raw in pipe:  # type: ignore[attr-defined]
        line = raw.decode(errors="replace").rstrip("\n")
        lines.append(line)
        if _READY.search(line):
            ready.set()


def _rss_anon(pid: int) -> int | None:
    """RssAnon of a process, where the kernel tells."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _program(tools: Toolchain, name: str) -> Sequence[str]:
    program = tools.programs.get(name)
    if program is None:
        raise ToolMissing(tool=name)
    return program


def _build(tools: Toolchain) -> str:
    return tools.build.label
