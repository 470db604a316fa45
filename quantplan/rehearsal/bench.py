"""How fast this very host is: llama-bench on models without weights, or on a real one, kept to correct predictions.

The engine reads zeros where a model has no weights. A mixture of experts then takes the same experts for every token;
what is predicted beside it takes that into account.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantplan.errors import DoesNotFit, ToolFailed, ToolMissing
from quantplan.hardware.facts import HostFacts
from quantplan.llama.benching import BenchLine, BenchSettings, bench, parse_bench
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.planner.calibration import HostMeasurement
from quantplan.planner.speed import PreparedSpeed, SpeedHost, predict_values, prepare_speed
from quantplan.planner.speed_work import work_of
from quantplan.rehearsal.ask import Answer, Question, answer
from quantplan.rehearsal.calibration import keep_bench, read_bench, speed_host_for
from quantplan.rehearsal.engine_word import weightless_file
from quantplan.rehearsal.holes import holes_folder
from quantplan.rehearsal.rehearse import Rehearsal, occupied_bytes

# Without a model: a small one and a larger one that a device has the room for, in a plain and in a packed preset
SMALL = (("Qwen3-0.6B", "Q8_0"), ("Llama-3.2-1B", "Q4_K_M"))
LARGE = (("Llama-3.1-8B", "Q8_0"), ("Llama-3.1-8B", "Q4_K_M"))
_LARGE_BYTES = 12 * 1024**3  # free memory of a GPU that the large ones are run on
_SECONDS = 1.5  # of one repetition, by what is predicted
_PROMPTS, _DECODES = (128, 512), (8, 16, 32, 64, 128)
_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRun:
    """One test on one device: best, median and spread of the samples, what was predicted before, and how far off."""

    device: str
    kind: str  # decode | prefill
    model: str
    quant: str
    weights: str  # zeros | its own
    n_tokens: int
    n_depth: int
    best_per_s: float
    median_per_s: float
    spread: float
    samples: tuple[float, ...]
    predicted_per_s: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All runs, and where they are kept."""

    runs: tuple[BenchRun, ...]
    engine_build: str
    measured_at: str
    host_fingerprint: str
    kept: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """A model at a preset on one device; `file` is a real model's."""

    answer: Answer
    device: str
    file: Path | None = None


def jobs_for(
    models: Sequence[tuple[ModelFacts, str | None]],
    host: HostFacts,
    *,
    devices: Sequence[str],
    file: Path | None = None,
) -> list[BenchJob]:
    """What is run: each model on each device. Raises DoesNotFit where a device has not the room."""
    found = []
    for facts, quant in models:
        for device in devices:
            own = replace(host, gpus=tuple(gpu for gpu in host.gpus if gpu.name == device))
            told = answer(facts, own, Question(quant=quant, n_ctx=1024, n_parallel=1, cache_ram_bytes=0))
            for room in told.rooms:
                need = occupied_bytes(told.memory.device(HOST))
                need = need if room.name == HOST else told.memory.device(room.name).total_bytes
                if room.free_bytes is not None and need > room.free_bytes:
                    raise DoesNotFit(device=room.name, need_bytes=need, free_bytes=room.free_bytes, what="the bench")
            found.append(BenchJob(answer=told, device=device, file=file))
    return found


def default_models(host: HostFacts, device: str) -> tuple[tuple[str, str], ...]:
    """(name, preset) of what is run where no model is named."""
    gpu = next((gpu for gpu in host.gpus if gpu.name == device), None)
    return LARGE if gpu is not None and gpu.free_bytes >= _LARGE_BYTES else SMALL


def real_file(facts: ModelFacts, model: str) -> Path | None:
    """The model's own file, where it is one with weights on this disk."""
    path = Path(model)
    if facts.origin is not FactsOrigin.GGUF_HEADER or not path.is_file():
        return None
    status = path.stat()
    return path if status.st_blocks * 512 >= status.st_size // 2 else None


def run_bench(
    jobs: Sequence[BenchJob], host: HostFacts, tools: Toolchain, *, repetitions: int = 3, n_depth: int = 0,
    priority: str = "normal", say: Callable[[str], None] = lambda _: None, run: Runner = run_tool,
    folder: Path | None = None, kept: Path | None = None,
) -> BenchReport:  # fmt: skip
    """Runs all jobs, keeps what they show, and returns it. Raises ToolMissing, ToolFailed, HolesFilled."""
    program = tools.programs.get("llama-bench")
    if program is None:
        raise ToolMissing(tool="llama-bench")
    shipped = _uncorrected(speed_host_for(host, folder=kept))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    runs: list[BenchRun] = []
    rows: list[HostMeasurement] = []
    for job in jobs:
        say(f"{job.answer.facts.id} {job.answer.quant} on {job.device} …")
        prepared = prepare_speed(job.answer.facts, job.answer.tensors, same_experts=job.file is None)
        settings = _settings(job, prepared, shipped, host, n_depth, repetitions, priority)
        with _model_of(job, folder) as path:
            argv = bench(program, replace(settings, model=path))
            done = run(argv, step="llama-bench", timeout_s=_TIMEOUT_S)
        try:
            lines = parse_bench("\n".join(done.stdout))
        except ValueError as error:
            raise ToolFailed(step="llama-bench", argv=argv, returncode=done.returncode,
                             last_lines=(str(error),)) from error  # fmt: skip
        for line in lines:
            own_run, row = _judged(job, prepared, shipped, line, tools.build.label, stamp)
            runs.append(own_run)
            rows.append(row)
            say(f"  {own_run.kind} {own_run.best_per_s:.1f} tokens/s, predicted {own_run.predicted_per_s:.1f}")
    path = keep_bench(host, rows, folder=kept)
    return BenchReport(runs=tuple(runs), engine_build=tools.build.label, measured_at=stamp,
                       host_fingerprint=host.fingerprint, kept=str(path))  # fmt: skip


def keep_rehearsal(
    told: Answer, found: Rehearsal, host: HostFacts, *, kept: Path | None = None
) -> tuple[HostMeasurement, ...]:
    """What a rehearsal showed of this host's speed, kept where no bench of the same configuration is. Only of a model
    that lies wholly on one device: what each of several took is not known."""
    names = (*told.placement.devices, HOST)
    works = work_of(prepare_speed(told.facts, told.tensors), told.placement, kv_offload=told.ctx.kv_offload)
    busy = [name for name, work in zip(names, works, strict=True) if not work.is_idle]
    if found.speed is None or len(busy) != 1 or found.speed.decode_per_s <= 0 or found.speed.prefill_per_s <= 0:
        return ()
    prepared = prepare_speed(told.facts, told.tensors, same_experts=found.weights == "zeros")
    shipped = _uncorrected(speed_host_for(host, folder=kept))
    lines = (
        BenchLine(n_prompt=found.speed.n_prompt, n_gen=0, n_depth=0, samples=(found.speed.prefill_per_s,),
                  build_commit="", backends=""),
        BenchLine(n_prompt=0, n_gen=found.speed.n_decoded, n_depth=found.speed.n_prompt,
                  samples=(found.speed.decode_per_s,), build_commit="", backends=""),
    )  # fmt: skip
    job = BenchJob(answer=told, device=busy[0])
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    build = found.measured.engine_build or "unknown"
    known = {(row.device, row.kind, row.model, row.quant) for row in read_bench(host, folder=kept) if row.n_runs > 1}
    rows = [_judged(job, prepared, shipped, line, build, stamp)[1] for line in lines]
    fresh = tuple(row for row in rows if (row.device, row.kind, row.model, row.quant) not in known)
    if fresh:
        keep_bench(host, fresh, folder=kept)
    return fresh


def _uncorrected(host: SpeedHost) -> SpeedHost:
    """The host without what was measured on it before."""
    return replace(host, devices=tuple(replace(device, measured=()) for device in host.devices))


@contextlib.contextmanager
def _model_of(job: BenchJob, folder: Path | None) -> Iterator[Path]:
    if job.file is not None:
        yield job.file
        return
    place = folder or holes_folder()
    with weightless_file(job.answer.facts, job.answer.tensors, synthetic=True, folder=place) as path:
        yield path


def _settings(
    job: BenchJob, prepared: PreparedSpeed, shipped: SpeedHost, host: HostFacts, n_depth: int, repetitions: int,
    priority: str,
) -> BenchSettings:  # fmt: skip
    """As many tokens as take a second or two, by what is predicted."""
    decode, prefill = predict_values(prepared, _context(512, n_depth), _placement(job), shipped, n_depth=n_depth)
    on_gpu = job.device != HOST
    return BenchSettings(
        model=Path(), n_prompt=next((n for n in reversed(_PROMPTS) if n <= prefill * 2 * _SECONDS), _PROMPTS[0]),
        n_gen=next((n for n in reversed(_DECODES) if n <= decode * _SECONDS), _DECODES[0]), n_depth=n_depth,
        n_threads=host.cpu.n_threads, n_gpu_layers=999 if on_gpu else 0, repetitions=repetitions, priority=priority,
        device=job.device if on_gpu else "none" if host.gpus else None,
    )  # fmt: skip


def _context(n_prompt: int, n_depth: int) -> ContextParams:
    return ContextParams(n_ctx=n_depth + n_prompt + 256, n_parallel=1, n_ubatch=n_prompt)


def _placement(job: BenchJob) -> Placement:
    return Placement(devices=() if job.device == HOST else (job.device,))


def _judged(
    job: BenchJob, prepared: PreparedSpeed, shipped: SpeedHost, line: BenchLine, build: str, stamp: str
) -> tuple[BenchRun, HostMeasurement]:
    """One line of the engine beside its prediction."""
    is_prefill = line.n_prompt > 0
    depth = line.n_depth if is_prefill else line.n_depth + line.n_gen // 2
    ctx = _context(min(line.n_prompt, 512) if is_prefill else 512, depth)
    predicted = predict_values(prepared, ctx, _placement(job), shipped, n_depth=depth)[1 if is_prefill else 0]
    kind = "prefill" if is_prefill else "decode"
    device = shipped.device(job.device)
    told = BenchRun(
        device=job.device, kind=kind, model=job.answer.facts.id, quant=job.answer.quant,
        weights="its own" if job.file else "zeros", n_tokens=line.n_prompt or line.n_gen, n_depth=line.n_depth,
        best_per_s=line.best, median_per_s=line.median, spread=round(line.spread, 4), samples=line.samples,
        predicted_per_s=predicted, error=round(predicted / line.best - 1, 4),
    )  # fmt: skip
    row = HostMeasurement(
        device=job.device, kind="prefill" if is_prefill else "decode", model=told.model, quant=told.quant,
        weights=prepared.main_class, is_mixture=prepared.is_mixture, nbytes=prepared.decode_bytes, n_depth=line.n_depth,
        measured_s=1 / line.best, predicted_s=1 / predicted if predicted else 0.0,
        bandwidth_bytes_per_s=int(device.bandwidth) if device else 0, spread=told.spread, n_runs=len(line.samples),
        build=build, measured_at=stamp,
    )  # fmt: skip
    return told, row
