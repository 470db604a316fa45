"""Command lines and output of the two tools that say what a configuration needs: llama-fit-params and llama-server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.units import MIB

Program = Sequence[str]
_FIT_LINE = re.compile(r"^(\S+) (\d+) (\d+) (\d+)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSettings:
    """One configuration, as both tools take it."""

    model: Path
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_parallel: int | None  # None: the server's automatic slots
    kv_unified: bool
    type_k: str
    type_v: str
    flash_attn: bool
    n_gpu_layers: int
    swa_full: bool = False
    kv_offload: bool = True
    tensor_split: tuple[float, ...] = ()
    n_cpu_moe: int = 0
    cpu_moe: bool = False
    overrides: tuple[tuple[str, str], ...] = ()
    cache_ram_mib: int = 0
    mmproj: Path | None = None
    draft: Path | None = None
    lora: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitLine:
    """One device as llama-fit-params prints it, in whole MiB."""

    device: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int


def fit_params(program: Program, settings: MeasuredSettings) -> tuple[str, ...]:
    """llama-fit-params: prints `device model context compute`."""
    return (*program, "--fit-print", "on", *_common(settings), "--parallel", str(settings.n_parallel or 1))


def measured_server(program: Program, settings: MeasuredSettings, *, host: str, port: int) -> tuple[str, ...]:
    """llama-server that prints every buffer and is ready without a warm-up."""
    slots = () if settings.n_parallel is None else ("--parallel", str(settings.n_parallel))
    mmproj = () if settings.mmproj is None else ("--mmproj", str(settings.mmproj))
    # a projector reserves its graph only when it warms up (tools/mtmd/clip.cpp, 0c1e570)
    warmup = ("--no-warmup",) if settings.mmproj is None else ()
    # a draft model alone is loaded and never asked: the kind of drafting has to be named (common/arg.cpp, 0c1e570)
    draft = () if settings.draft is None else ("--model-draft", str(settings.draft), "--spec-type", "draft-simple")
    return (
        *program, *_common(settings), *slots, "--kv-unified" if settings.kv_unified else "--no-kv-unified",
        "--cache-ram", str(settings.cache_ram_mib), *warmup, "--fit", "off", "--offline", "--no-ui",
        "--log-verbosity", "4", "--log-colors", "off", "--host", host, "--port", str(port), *mmproj, *draft,
        *(part for path in settings.lora for part in ("--lora", str(path))),
    )  # fmt: skip


def _common(settings: MeasuredSettings) -> tuple[str, ...]:
    split = ",".join(f"{share:g}" for share in settings.tensor_split)
    overrides = ",".join(f"{pattern}={device}" for pattern, device in settings.overrides)
    return (
        "--model", str(settings.model),
        "--ctx-size", str(settings.n_ctx),
        "--batch-size", str(settings.n_batch),
        "--ubatch-size", str(settings.n_ubatch),
        "--cache-type-k", settings.type_k.lower(),
        "--cache-type-v", settings.type_v.lower(),
        "--flash-attn", "on" if settings.flash_attn else "off",
        "--n-gpu-layers", str(settings.n_gpu_layers),
        *(("--swa-full",) if settings.swa_full else ()),
        *(() if settings.kv_offload else ("--no-kv-offload",)),
        *(("--tensor-split", split) if split else ()),
        *(("--n-cpu-moe", str(settings.n_cpu_moe)) if settings.n_cpu_moe else ()),
        *(("--cpu-moe",) if settings.cpu_moe else ()),
        *(("--override-tensor", overrides) if overrides else ()),
    )  # fmt: skip


def parse_fit_params(lines: Sequence[str]) -> tuple[FitLine, ...]:
    """`CUDA0 762 256 254` and its kin."""
    found = (match for line in lines if (match := _FIT_LINE.match(line)))
    return tuple(
        FitLine(device=m[1], model_bytes=int(m[2]) * MIB, context_bytes=int(m[3]) * MIB, compute_bytes=int(m[4]) * MIB)
        for m in found
    )
