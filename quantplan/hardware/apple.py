"""A Mac: one memory for CPU and GPU, read by sysctl."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantplan.errors import QuantplanError
from quantplan.hardware.facts import CpuFacts, GpuFacts, RamFacts
from quantplan.hardware.nvidia import Bandwidth
from quantplan.hardware.profiles import apple_usable
from quantplan.llama.process import Runner
from quantplan.units import MIB

_SYSCTL_TIMEOUT_S = 3.0
_KEYS = (
    "hw.memsize", "hw.pagesize", "hw.physicalcpu", "hw.logicalcpu", "hw.perflevel0.physicalcpu",
    "machdep.cpu.brand_string", "iogpu.wired_limit_mb", "vm.swapusage", "vm.page_free_count", "vm.page_purgeable_count",
    "vm.page_speculative_count", "hw.optional.arm.FEAT_DotProd", "hw.optional.arm.FEAT_I8MM",
    "hw.optional.arm.FEAT_SME", "hw.optional.arm.FEAT_BF16", "hw.perflevel0.l2cachesize",
)  # fmt: skip
_FEATURES = (("FEAT_DotProd", "asimddp"), ("FEAT_I8MM", "i8mm"), ("FEAT_BF16", "bf16"), ("FEAT_SME", "sme"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AppleFacts:
    cpu: CpuFacts
    ram: RamFacts
    gpus: tuple[GpuFacts, ...] = ()
    warnings: tuple[str, ...] = ()


def read_apple(run: Runner, *, known: Bandwidth | None = None) -> AppleFacts:
    """A Mac's facts by one sysctl call; where it does not answer, nothing is known and a warning says so."""
    try:
        said = run(("sysctl", *_KEYS), step="sysctl", timeout_s=_SYSCTL_TIMEOUT_S, check=False).stdout
    except QuantplanError as error:
        return AppleFacts(
            cpu=CpuFacts(model=None, n_physical=1, n_logical=1, n_threads=1),
            ram=RamFacts(total_bytes=0, available_bytes=0),
            warnings=(f"the system does not tell about itself ({error}); assumed one core and no memory",),
        )
    return from_sysctl("\n".join(said), known=known)


def from_sysctl(text: str, *, known: Bandwidth | None = None) -> AppleFacts:
    """A Mac's facts from what `sysctl KEY…` prints: `key: value` lines; unknown keys are missing lines."""
    told = dict(re.findall(r"^([\w.]+):\s*(.*)$", text, flags=re.MULTILINE))
    total = _number(told, "hw.memsize") or 0
    page = _number(told, "hw.pagesize") or 16384
    idle = sum(_number(told, f"vm.page_{kind}_count") or 0 for kind in ("free", "purgeable", "speculative"))
    available = min(idle * page, total) if idle else total
    swap = re.search(r"total = ([\d.]+)M\s+used = ([\d.]+)M", told.get("vm.swapusage", ""))
    model = told.get("machdep.cpu.brand_string")
    physical = _number(told, "hw.physicalcpu") or 1
    performance = _number(told, "hw.perflevel0.physicalcpu")
    cpu = CpuFacts(
        model=model,
        n_physical=physical,
        n_logical=_number(told, "hw.logicalcpu") or physical,
        n_threads=performance or physical,
        n_performance=performance if performance and performance < physical else None,
        simd=_simd(told, model),
        cache_bytes=_number(told, "hw.perflevel0.l2cachesize"),
        threads_reason="performance cores" if performance and performance < physical else "physical cores",
    )
    ram = RamFacts(
        total_bytes=total,
        available_bytes=available,
        physical_bytes=total,
        swap_total_bytes=int(float(swap[1]) * MIB) if swap else None,
        swap_free_bytes=int((float(swap[1]) - float(swap[2])) * MIB) if swap else None,
    )
    warnings = () if total else ("the system does not say how much memory it has; assumed none",)
    gpus = (_gpu(told, model, ram, known),) if model and model.startswith("Apple ") and total else ()
    return AppleFacts(cpu=cpu, ram=ram, gpus=gpus, warnings=warnings)


def _simd(told: dict[str, str], model: str | None) -> tuple[str, ...]:
    found = tuple(name for feature, name in _FEATURES if told.get(f"hw.optional.arm.{feature}") == "1")
    return ("asimd", *found) if model and model.startswith("Apple ") else found


def _gpu(told: dict[str, str], model: str, ram: RamFacts, known: Bandwidth | None) -> GpuFacts:
    """The GPU's share of the memory: the wired limit where one is set (0 is the default), else Metal's own rule."""
    limit = _number(told, "iogpu.wired_limit_mb") or 0
    total = min(limit * MIB, ram.total_bytes) if limit else apple_usable(ram.total_bytes)
    table = known(model, ram.total_bytes) if known else None
    return GpuFacts(
        name="MTL0",
        product=model,
        vendor="apple",
        total_bytes=total,
        free_bytes=min(total, ram.available_bytes),
        unified=True,
        bandwidth_bytes_per_s=table[1] if table else None,
        bandwidth_source="table" if table else None,
        spec_name=table[0] if table else None,
    )


def _number(told: dict[str, str], key: str) -> int | None:
    value = told.get(key, "")
    return int(value) if value.isdecimal() else None
