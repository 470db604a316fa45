"""A host, its findings and its samples as text."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.hardware.facts import CpuFacts, DiskFacts, GpuFacts, HostFacts, RamFacts
from quantplan.hardware.finding import Finding
from quantplan.hardware.measure import Measured
from quantplan.hardware.monitor import DeviceSample, Sample
from quantplan.hardware.system import CudaVersions
from quantplan.units import format_size


def describe_host(host: HostFacts, measured: Sequence[Measured] = ()) -> str:
    """A host in a dozen lines."""
    system = host.system
    ground = [host.os, *(filter(None, (system.distribution, system.kernel, system.container)) if system else ())]
    rows = [("system", ", ".join(ground)), ("CPU", _cpu(host.cpu)), ("RAM", _ram(host.ram))]
    rows += [(gpu.name, _gpu(gpu)) for gpu in host.gpus] or [("GPU", "none")]
    if system and system.driver:
        cuda = f", up to CUDA {system.driver_cuda[0]}.{system.driver_cuda[1]}" if system.driver_cuda else ""
        rows.append(("driver", f"NVIDIA {system.driver}{cuda}"))
    if host.disk:
        rows.append(("disk", _disk(host.disk)))
    rows += [(f"measured {item.what}", _measured(item)) for item in measured]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _cpu(cpu: CpuFacts) -> str:
    kinds = f", {cpu.n_performance} of them performance cores" if cpu.n_performance else ""
    return (
        f"{cpu.model or 'unknown'}: {cpu.n_physical} cores, {cpu.n_logical} threads{kinds}; "
        f"{cpu.n_threads} for the engine ({cpu.threads_reason})"
    )


def _ram(ram: RamFacts) -> str:
    text = f"{format_size(ram.total_bytes)}, {format_size(ram.available_bytes)} available"
    if ram.limit_bytes is not None:
        text += f" (limit of {ram.limit_path}; the machine has {format_size(ram.physical_bytes or 0)})"
    if ram.bandwidth_bytes_per_s:
        text += f", {ram.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
    return text


def _gpu(gpu: GpuFacts) -> str:
    parts = [f"{gpu.product}: {format_size(gpu.total_bytes)}, {format_size(gpu.free_bytes)} free"]
    if gpu.unified:
        parts.append("shared with the CPU")
    if gpu.bandwidth_bytes_per_s:
        parts.append(f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f} GB/s ({gpu.bandwidth_source})")
    if gpu.compute_capability:
        parts.append(f"compute {gpu.compute_capability[0]}.{gpu.compute_capability[1]}")
    if gpu.pcie and gpu.pcie.width:
        parts.append(f"PCIe {gpu.pcie.max_generation or gpu.pcie.generation}.0 x{gpu.pcie.width}")
    if gpu.throttle_reasons:
        parts.append(f"held down by: {', '.join(gpu.throttle_reasons)}")
    return ", ".join(parts)


def _disk(disk: DiskFacts) -> str:
    kind = f" on {disk.kind}" if disk.kind else ""
    speed = f", reads {disk.read_bytes_per_s / 1e9:.2f} GB/s" if disk.read_bytes_per_s else ""
    holes = {True: "sparse files", False: "no sparse files", None: "sparse files not known"}[disk.holes]
    where = f"{disk.filesystem or 'unknown file system'}{kind}"
    return f"{format_size(disk.free_bytes)} free in {disk.path}, {where}{speed}, {holes}"


def _measured(item: Measured) -> str:
    return (
        f"{item.bytes_per_s / 1e9:.2f} GB/s (median {item.median_bytes_per_s / 1e9:.2f}, spread {item.spread:.0%}, "
        f"{item.n_runs} runs, {item.measured_at}; {item.how})"
    )


def describe_findings(findings: Sequence[Finding], *, n_checks: int, versions: CudaVersions) -> str:
    """The findings, the worst first, each with its fix; then the versions that must fit together."""
    lines = []
    for found in findings:
        lines.append(f"{found.severity.value:<7} {found.check}: {found.reason}")
        if found.fix:
            lines.append(f"        $ {found.fix}")
    if not findings:
        lines.append("nothing to change")
    return "\n".join([*lines, "", describe_versions(versions), f"{n_checks} checks, {len(findings)} findings"])


def describe_versions(versions: CudaVersions) -> str:
    """Driver, compiler, engine and torch side by side."""

    def dotted(pair: tuple[int, int] | None) -> str:
        return f"{pair[0]}.{pair[1]}" if pair else "none"

    engine = str(versions.engine_runtime) if versions.engine_runtime else "none"
    return (
        f"CUDA: driver {versions.driver or 'none'} (runs {dotted(versions.driver_cuda)}), "
        f"nvcc {dotted(versions.nvcc)}, engine {engine}, torch {dotted(versions.torch_runtime)}"
    )


def describe_sample(sample: Sample) -> str:
    """One line: the host, then each device."""
    parts = [f"host {format_size(sample.used_bytes)} used, {format_size(sample.available_bytes)} available"]
    if sample.over_plan_bytes is not None:
        parts[0] += f" ({_signed(sample.over_plan_bytes)} against the plan)"
    if sample.swap_in_bytes_per_s is not None:
        parts.append(f"swap in {format_size(int(sample.swap_in_bytes_per_s))}/s")
    if sample.disk_wait is not None:
        parts.append(f"disk wait {sample.disk_wait:.0%}")
    return " | ".join([*parts, *map(_device, sample.devices)])


def _device(device: DeviceSample) -> str:
    text = f"{device.name} {format_size(device.used_bytes)} of {format_size(device.total_bytes)}"
    if device.over_plan_bytes is not None:
        text += f" ({_signed(device.over_plan_bytes)} against the plan)"
    if device.temperature_c is not None:
        text += f", {device.temperature_c} C"
    if device.power_w is not None:
        text += f", {device.power_w:.0f} W"
    return text + "".join(f", {reason}" for reason in device.throttle_reasons)


def _signed(n_bytes: int) -> str:
    return f"{'+' if n_bytes >= 0 else '-'}{format_size(abs(n_bytes))}"
