"""llama-bench: its command line and its JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Program = Sequence[str]
PRIORITIES = {"normal": 0, "high": 2, "realtime": 3}  # tools/llama-bench/llama-bench.cpp (0c1e570): --prio


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """One configuration. `device` None leaves the choice to the engine, "none" uses the CPU alone."""

    model: Path
    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    n_gpu_layers: int
    repetitions: int
    n_batch: int = 2048
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    n_cpu_moe: int = 0
    device: str | None = None
    priority: str = "normal"


def bench(program: Program, settings: BenchSettings) -> tuple[str, ...]:
    """llama-bench that reads a prompt and decodes, each a test of its own, after a warm-up."""
    return (
        *program,
        "--model", str(settings.model),
        "--n-prompt", str(settings.n_prompt),
        "--n-gen", str(settings.n_gen),
        "--n-depth", str(settings.n_depth),
        "--threads", str(settings.n_threads),
        "--n-gpu-layers", str(settings.n_gpu_layers),
        "--n-cpu-moe", str(settings.n_cpu_moe),
        "--batch-size", str(settings.n_batch),
        "--ubatch-size", str(settings.n_ubatch),
        "--cache-type-k", settings.type_k.lower(),
        "--cache-type-v", settings.type_v.lower(),
        "--flash-attn", "auto",
        "--load-mode", "mmap",
        "--prio", str(PRIORITIES[settings.priority]),
        "--repetitions", str(settings.repetitions),
        "--progress",
        "--output", "json",
        *(("--device", settings.device) if settings.device else ()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLine:
    """One test: tokens a second of each repetition. `n_prompt` 0 is decoding."""

    n_prompt: int
    n_gen: int
    n_depth: int
    samples: tuple[float, ...]
    build_commit: str
    backends: str

    @property
    def best(self) -> float:
        """What the host can do: whatever disturbs a run makes it slower."""
        return max(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Relative half-width of the samples."""
        return (max(self.samples) - min(self.samples)) / 2 / self.median


def parse_bench(text: str) -> tuple[BenchLine, ...]:
    """llama-bench's `--output json`. Raises ValueError where it is none or has no samples."""
    try:
        rows: list[dict[str, Any]] = json.loads(text[text.index("[") :])
        lines = tuple(
            BenchLine(
                n_prompt=int(row["n_prompt"]), n_gen=int(row["n_gen"]), n_depth=int(row.get("n_depth", 0)),
                samples=tuple(float(rate) for rate in row["samples_ts"]), build_commit=str(row["build_commit"]),
                backends=str(row.get("backends", "")),
            )
            for row in rows
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no result of llama-bench ({error})") from error
    if not lines or any(not line.samples or min(line.samples) <= 0 for line in lines):
        raise ValueError("no samples in the result of llama-bench")
    return lines
