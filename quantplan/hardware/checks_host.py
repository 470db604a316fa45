"""Checks of the host: threads, memory, cards, disk, port. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantplan.hardware.examine import Situation
from quantplan.hardware.facts import GpuFacts
from quantplan.hardware.finding import Severity
from quantplan.hardware.nvidia import HARMFUL_THROTTLE
from quantplan.units import format_size

SLOW_LOAD_S = 60  # a minute is what people wait for a server; health checks give up near it
SLOW_DISKS = frozenset({"hdd", "network"})


def threads(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    cpu = now.host.cpu
    allowed = min(cpu.n_physical, cpu.n_allowed or cpu.n_logical)
    if cpu.quota_cpus is not None and cpu.quota_cpus < allowed:
        yield (
            Severity.HURTS,
            f"a quota of {cpu.quota_cpus:g} CPUs, and the engine by itself would start {cpu.n_physical} threads "
            "(measured elsewhere: 0.27 instead of 12.07 tokens/s)",
            f"llama-server --threads {cpu.n_threads} --threads-batch {cpu.n_threads}",
        )
    elif cpu.n_allowed is not None and cpu.n_allowed < cpu.n_physical:
        yield (
            Severity.HURTS,
            f"this process may use {cpu.n_allowed} CPUs, and the engine by itself would start {cpu.n_physical} threads",
            f"llama-server --threads {cpu.n_threads} --threads-batch {cpu.n_threads}",
        )


def memory_limit(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    ram = now.host.ram
    if ram.limit_bytes is None:
        return
    limit = f"{ram.limit_path} limits memory to {format_size(ram.limit_bytes)}"
    if now.model_bytes is not None and now.model_bytes > ram.limit_bytes and not now.host.gpus:
        raised = f"{ram.limit_path}/{'memory.limit_in_bytes' if 'memory' in (ram.limit_path or '') else 'memory.max'}"
        reason = f"{limit}, less than the model's {format_size(now.model_bytes)}"
        yield Severity.BREAKS, reason, f"echo {2 * now.model_bytes} | sudo tee {raised}"
    else:
        yield Severity.NOTE, f"{limit} of {format_size(ram.physical_bytes or 0)}", None


def swap(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    settings = now.settings
    if settings.zram_swap and settings.swappiness is not None and settings.swappiness < 100:
        yield (
            Severity.HURTS,
            f"swap in compressed memory wants a swappiness of 100 to 180, and it is {settings.swappiness}: the kernel "
            "drops the model's pages instead",
            "sudo sysctl vm.swappiness=180",
        )
    if settings.zram_swap and settings.disk_swap:
        yield (
            Severity.HURTS,
            f"{', '.join(settings.disk_swap)} beside compressed swap: what overflows goes to the disk",
            f"sudo swapoff {settings.disk_swap[0]}",
        )
    elif settings.disk_swap and now.host.ram.swap_limit_bytes != 0:
        yield (
            Severity.NOTE,
            f"{', '.join(settings.disk_swap)}: weights and cache that are swapped out make every token wait",
            "sudo systemctl set-property --runtime YOUR-SERVER.service MemorySwapMax=0",
        )


def huge_pages(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    if now.settings.huge_pages == "never":
        yield (
            Severity.NOTE,
            "transparent huge pages are off: gigabytes of weights in 4 KiB pages",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )


def numa_balancing(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    nodes = [node for node in now.host.cpu.numa_nodes if node.cpus]
    if now.settings.numa_balancing and len(nodes) > 1:
        yield (
            Severity.HURTS,
            f"the kernel moves pages between {len(nodes)} memory nodes while the engine reads them",
            "sudo sysctl kernel.numa_balancing=0",
        )


# ---- the cards


def pcie(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for gpu in now.host.gpus:
        link = gpu.pcie
        if gpu.vendor not in ("nvidia", "amd") or gpu.unified or link is None or not link.width or not link.max_width:
            continue
        if link.width < link.max_width:
            yield (
                Severity.HURTS,
                f"{gpu.name} ({gpu.product}) has {link.width} of its {link.max_width} PCIe lanes",
                f"sudo lspci -vv -s {slot(gpu)} | grep -E 'LnkCap|LnkSta'  # then another slot or riser",
            )


def throttling(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for gpu in now.host.gpus:
        harmful = [reason for reason in gpu.throttle_reasons if reason in HARMFUL_THROTTLE]
        if harmful:
            at = f" at {gpu.temperature_c} C" if gpu.temperature_c is not None else ""
            yield (
                Severity.HURTS,
                f"{gpu.name} ({gpu.product}) is slowed down{at}: {', '.join(harmful)}",
                f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {gpu.bus_id or 0}",
            )


def power_cap(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for gpu in now.host.gpus:
        if gpu.power_limit_w and gpu.power_default_w and gpu.power_limit_w < gpu.power_default_w:
            yield (
                Severity.NOTE,
                f"{gpu.name} ({gpu.product}) is capped at {gpu.power_limit_w:g} of {gpu.power_default_w:g} W: prefill "
                "suffers more than decode",
                f"sudo nvidia-smi -i {gpu.bus_id or 0} -pl {gpu.power_default_w:g}",
            )


def slot(gpu: GpuFacts) -> str:
    return re.sub(r"^0{4}(?=[0-9A-Fa-f]{4}:)", "", gpu.bus_id or "")


# ---- disk and port


def disk_speed(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    disk = now.host.disk
    if disk is None:
        return
    if disk.read_bytes_per_s and now.model_bytes:
        seconds = now.model_bytes / disk.read_bytes_per_s
        if seconds > SLOW_LOAD_S:
            reason = f"{disk.path} reads {format_size(disk.read_bytes_per_s)}/s: loading takes {seconds:.0f} s"
            yield Severity.HURTS, reason, "quantplan hardware --measure  # after a move to a faster disk"
    elif disk.kind in SLOW_DISKS:
        reason = f"{disk.path} is on a {disk.kind} disk ({disk.device}): loading may take minutes"
        yield Severity.HURTS, reason, "quantplan hardware --measure"


def holes(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    disk = now.host.disk
    if disk is not None and disk.holes is False:
        reason = f"{disk.filesystem or 'the file system'} under {disk.path} has no sparse files: a rehearsal needs one"
        yield Severity.BREAKS, reason, 'export QUANTPLAN_CACHE="$HOME/.cache/quantplan"  # on ext4, xfs or btrfs'
    elif disk is not None and disk.kind == "memory":
        reason = f"{disk.path} is memory ({disk.filesystem}): a rehearsal's empty weights would take real RAM"
        yield Severity.HURTS, reason, 'export QUANTPLAN_CACHE="$HOME/.cache/quantplan"  # on a disk'


def disk_space(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    disk = now.host.disk
    if disk is not None and now.build_bytes is not None and now.build_bytes > disk.free_bytes:
        reason = (
            f"the build needs {format_size(now.build_bytes)} in {disk.path}, {format_size(disk.free_bytes)} are free"
        )
        yield Severity.BREAKS, reason, f"du -xh {disk.path} | sort -h | tail"


def port(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    if now.taken_port is not None:
        reason = f"port {now.taken_port} is taken by another program"
        yield Severity.BREAKS, reason, f"ss -ltnp 'sport = :{now.taken_port}'"


def wsl(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    if now.host.system is not None and now.host.system.wsl is not None:
        gib = max(now.host.ram.total_bytes // 1024**3, 1)
        reason = f"Windows gives this Linux {gib} GiB of its memory (half by default)"
        yield Severity.NOTE, reason, "wsl --shutdown  # after memory= under [wsl2] in %UserProfile%\\.wslconfig"


def detection(now: Situation) -> Iterator[tuple[Severity, str, str | None]]:
    for warning in now.host.warnings:
        if "NVIDIA" not in warning and " MIG " not in warning:
            order = "CUDA_DEVICE_ORDER" in warning
            yield Severity.NOTE, warning, "export CUDA_DEVICE_ORDER=PCI_BUS_ID" if order else None
