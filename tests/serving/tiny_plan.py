"""Plans of the bundled model for this host."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Plan, PlannedDevice
from quantplan.hardware.detect import detect_host
from quantplan.memory.estimate import estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.read import read_model


def bare_plan(**changes: Any) -> Plan:
    """A plan of the bundled model without memory figures and without a host."""
    plan = Plan(
        model="quantplan-tiny", quant="Q4_K_M", source={"repo": None, "revision": None, "file": None, "sha256": None},
        runtime="llama-server", n_ctx_per_slot=1024, n_parallel=2, kv_unified=True, type_k="f16", type_v="f16",
        flash_attn="on", n_batch=512, n_ubatch=512, n_gpu_layers=0, tensor_split=(), n_cpu_moe=0, override_tensor=(),
        threads=1, threads_batch=1, numa=None, cpu_range=None, cache_ram_bytes=0, load_mode="mmap", mmproj=None,
        draft=None, memory=(), decode_tokens_per_s=None, prefill_tokens_per_s=None, quality=None, margin=(), argv=(),
        host_fingerprint=None, made_at="2026-11-22T00:00:00Z",
    )  # fmt: skip
    return replace(plan, **changes)


def planned(model: Path, *, sha256: str | None = None, **changes: Any) -> Plan:
    """A plan of the bundled model for this host, with its memory as estimated for it."""
    host = detect_host()
    plan = bare_plan(
        source={"repo": None, "revision": None, "file": model.name, "sha256": sha256},
        host_fingerprint=host.fingerprint,
    )  # fmt: skip
    plan = replace(plan, **changes)
    ctx = ContextParams(
        n_ctx=plan.n_ctx_per_slot * plan.n_parallel, n_parallel=plan.n_parallel, kv_unified=plan.kv_unified,
        type_k=plan.type_k.upper(), type_v=plan.type_v.upper(), flash_attn=plan.flash_attn != "off",
        n_batch=plan.n_batch, n_ubatch=plan.n_ubatch, cache_ram_bytes=plan.cache_ram_bytes,
    )  # fmt: skip
    estimate = estimate_memory(prepare(read_model(str(model))), ctx, Placement(n_gpu_layers=0))
    devices = tuple(
        PlannedDevice(
            name=device.name, model_bytes=device.model_bytes, context_bytes=device.context_bytes,
            compute_bytes=device.compute_bytes, output_bytes=device.output_bytes, overhead_bytes=device.overhead_bytes,
            capacity_bytes=host.ram.total_bytes, free_bytes=host.ram.available_bytes,
        )
        for device in estimate.devices
    )  # fmt: skip
    return replace(plan, memory=devices)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
