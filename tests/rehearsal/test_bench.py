"""Bench: what the engine prints, what is kept of it, and what that does to predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quantplan.errors import BadValue, DoesNotFit, ToolFailed, ToolMissing
from quantplan.hardware.facts import CpuFacts, HostFacts, RamFacts
from quantplan.llama.benching import BenchSettings, bench, parse_bench
from quantplan.llama.types import BuildInfo, Completed, Origin, Toolchain
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.read import read_model
from quantplan.planner.speed import predict, prepare_speed
from quantplan.rehearsal.bench import keep_rehearsal, run_bench
from quantplan.rehearsal.bench_jobs import plan_bench
from quantplan.rehearsal.calibration import keep_bench, read_bench, speed_host_for
from quantplan.rehearsal.rehearse import Rehearsal, Speed
from quantplan.units import GIB

DATA = Path(__file__).resolve().parents[1] / "data" / "llama_output"
CPU = CpuFacts(model="a CPU", n_physical=2, n_logical=2, n_threads=2, simd=("avx2",), cache_bytes=2**20)
HOST = HostFacts(
    os="Linux", cpu=CPU,
    ram=RamFacts(total_bytes=16 * GIB, available_bytes=12 * GIB, bandwidth_bytes_per_s=30_000_000_000),
)  # fmt: skip
TOOLS = Toolchain(
    origin=Origin.OPTION, folder=Path("/opt/llama"), programs={"llama-bench": ("/opt/llama/llama-bench",)},
    build=BuildInfo(version=None, number=11312, commit="0c1e570"),
)  # fmt: skip


class FakeBench:
    """Answers like llama-bench: so many tokens a second, whatever is asked."""

    def __init__(self, *, prefill: Sequence[float], decode: Sequence[float]) -> None:
        self.rates, self.argv = {"prefill": prefill, "decode": decode}, [("",)]

    def __call__(self, argv: Sequence[str], **_: object) -> Completed:
        self.argv.append(tuple(argv))
        n_prompt, n_gen = (int(argv[argv.index(flag) + 1]) for flag in ("--n-prompt", "--n-gen"))
        rows = [
            {"build_commit": "0c1e570", "backends": "CPU", "n_prompt": n_prompt, "n_gen": 0, "n_depth": 0,
             "samples_ts": list(self.rates["prefill"])},
            {"build_commit": "0c1e570", "backends": "CPU", "n_prompt": 0, "n_gen": n_gen, "n_depth": 0,
             "samples_ts": list(self.rates["decode"])},
        ]  # fmt: skip
        lines = ("warming up", *json.dumps(rows, indent=1).splitlines())
        return Completed(argv=tuple(argv), returncode=0, seconds=1.0, peak_rss_bytes=None, stdout=lines, stderr=())


def test_the_engines_own_words_are_understood() -> None:
    prompt, decode = parse_bench((DATA / "llama-bench-0c1e570.json").read_text())
    assert (prompt.n_prompt, prompt.n_gen, prompt.n_depth) == (128, 0, 0)
    assert (decode.n_prompt, decode.n_gen) == (0, 16)
    assert decode.samples == (3824.44, 4320.43, 4631.71)
    assert (decode.best, decode.median) == (4631.71, 4320.43)
    assert decode.spread == pytest.approx((4631.71 - 3824.44) / 2 / 4320.43)
    assert decode.build_commit == "0c1e570"


@pytest.mark.parametrize("text", ["", "[]", "[{}]", '[{"n_prompt": 1}]', "no JSON", '[{"samples_ts": []}]'])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bench(text)


def test_every_flag_that_matters_is_written() -> None:
    settings = BenchSettings(model=Path("m.gguf"), n_prompt=512, n_gen=64, n_depth=0, n_threads=16, n_gpu_layers=999,
                             repetitions=3, device="CUDA0", priority="high")  # fmt: skip
    argv = bench(("llama-bench",), settings)
    assert " ".join(argv) == (
        "llama-bench --model m.gguf --n-prompt 512 --n-gen 64 --n-depth 0 --threads 16 --n-gpu-layers 999 "
        "--n-cpu-moe 0 --batch-size 2048 --ubatch-size 512 --cache-type-k f16 --cache-type-v f16 "
        "--flash-attn auto --load-mode mmap --prio 2 --repetitions 3 --progress --output json --device CUDA0"
    )


def decode_of(model: str, quant: str, folder: Path) -> tuple[float, str]:
    from quantplan.quant.presets import apply_preset

    facts = read_model(model)
    prepared = prepare_speed(facts, apply_preset(facts.tensors, facts.metadata, quant).tensors)
    ctx = ContextParams(n_ctx=1024, n_parallel=1)
    speed = predict(prepared, ctx, Placement(), speed_host_for(HOST, folder=folder), n_depth=8)
    assert speed.decode is not None
    return speed.decode.value, speed.decode.origin


def test_a_bench_corrects_what_is_predicted_from_then_on(tmp_path: Path) -> None:
    before, origin = decode_of("Qwen3-0.6B", "Q8_0", tmp_path)
    assert origin.startswith("calculated:")
    fake = FakeBench(prefill=(100.0, 110.0, 90.0), decode=(before / 2, before / 2.2, before / 2.1))
    jobs = plan_bench("Qwen3-0.6B", HOST, quant="Q8_0")
    said: list[str] = []
    report = run_bench(jobs, HOST, TOOLS, run=fake, folder=tmp_path, kept=tmp_path, say=said.append)
    prompt, decode = report.runs
    assert (decode.kind, decode.device, decode.weights, decode.quant) == ("decode", "Host", "zeros", "Q8_0")
    assert decode.best_per_s == before / 2
    assert decode.error == pytest.approx(1.0, abs=0.03)  # predicted twice what was measured
    assert prompt.best_per_s == 110.0
    after, origin = decode_of("Qwen3-0.6B", "Q8_0", tmp_path)
    assert after == pytest.approx(before / 2, rel=0.03)
    assert origin.startswith("calibrated on this host: llama-bench")
    other, _ = decode_of("Llama-3.2-1B", "Q8_0", tmp_path)
    assert other < decode_of("Llama-3.2-1B", "Q8_0", tmp_path / "empty")[0]
    assert said[0] == "Qwen/Qwen3-0.6B Q8_0 on Host …"
    assert not list(tmp_path.glob("*.gguf"))  # the model without weights is gone


def test_a_newer_run_replaces_the_older_and_another_build_all(tmp_path: Path) -> None:
    jobs = plan_bench("Qwen3-0.6B", HOST, quant="Q8_0")
    run_bench(jobs, HOST, TOOLS, run=FakeBench(prefill=(10,), decode=(5,)), folder=tmp_path, kept=tmp_path)
    run_bench(jobs, HOST, TOOLS, run=FakeBench(prefill=(20,), decode=(8,)), folder=tmp_path, kept=tmp_path)
    rows = read_bench(HOST, folder=tmp_path)
    assert sorted(round(1 / row.measured_s) for row in rows) == [8, 20]
    keep_bench(HOST, [replace(rows[0], build="another", model="another")], folder=tmp_path)
    assert [row.build for row in read_bench(HOST, folder=tmp_path)] == ["another"]


def test_a_rehearsal_is_kept_where_no_bench_is(tmp_path: Path) -> None:
    told = plan_bench("Qwen3-0.6B", HOST, quant="Q8_0")[0].answer
    speed = Speed(n_prompt=256, n_decoded=32, prefill_per_s=100.0, decode_per_s=20.0)
    measured = replace(told.memory, engine_build="b11312-0c1e570")
    found = Rehearsal(planned=told.memory, measured=measured, peak_anonymous_bytes=None, peak_resident_bytes=None,
                      peak_gpu_bytes=(), ready_s=1.0, load_s=None, speed=speed, weights="zeros", limit_bytes=None,
                      notes=())  # fmt: skip
    rows = keep_rehearsal(told, found, HOST, kept=tmp_path)
    assert [(row.kind, round(1 / row.measured_s), row.n_depth) for row in rows] == [
        ("prefill", 100, 0),
        ("decode", 20, 256),
    ]
    jobs = plan_bench("Qwen3-0.6B", HOST, quant="Q8_0")
    run_bench(jobs, HOST, TOOLS, run=FakeBench(prefill=(90, 80), decode=(9, 8)), folder=tmp_path, kept=tmp_path)
    assert keep_rehearsal(told, found, HOST, kept=tmp_path) == ()


def test_a_broken_file_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / f"{HOST.fingerprint}.json").write_text('[{"device": "Host"}]')
    assert read_bench(HOST, folder=tmp_path) == ()


def test_the_usual_models_where_none_is_named() -> None:
    jobs = plan_bench(None, HOST)
    assert [(job.answer.facts.id, job.answer.quant, job.device) for job in jobs] == [
        ("Qwen/Qwen3-0.6B", "Q8_0", "Host"),
        ("meta-llama/Llama-3.2-1B-Instruct", "Q4_K_M", "Host"),
    ]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="CUDA7"):
        plan_bench(None, HOST, devices=("CUDA7",))
    small = replace(HOST, ram=replace(HOST.ram, available_bytes=GIB))
    with pytest.raises(DoesNotFit, match="the bench"):
        plan_bench("Llama-3.1-8B", small)
    jobs = plan_bench("Qwen3-0.6B", HOST)
    with pytest.raises(ToolMissing):
        run_bench(jobs, HOST, replace(TOOLS, programs={}), folder=tmp_path, kept=tmp_path)
    silent = FakeBench(prefill=(), decode=())
    with pytest.raises(ToolFailed, match="no samples"):
        run_bench(jobs, HOST, TOOLS, run=silent, folder=tmp_path, kept=tmp_path)


@pytest.mark.tools
def test_the_real_tool_on_the_smallest_model(toolchain: Toolchain, tmp_path: Path) -> None:
    from quantplan.hardware.detect import detect_host

    host = replace(detect_host(), gpus=())
    jobs = plan_bench("quantplan-tiny", host)
    report = run_bench(jobs, host, toolchain, repetitions=1, folder=tmp_path, kept=tmp_path)
    assert [run.kind for run in report.runs] == ["prefill", "decode"]
    assert all(run.best_per_s > 1 for run in report.runs)
    assert report.engine_build
    assert len(read_bench(host, folder=tmp_path)) == 2
