"""This host, as far as it can be read in a fraction of a second. Nothing here raises: what fails is a warning."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quantplan.hardware.amdsmi import AmdSmi, RealAmdSmi, with_amdsmi
from quantplan.hardware.bounded import TookTooLong, bounded
from quantplan.hardware.cgroup import read_limits
from quantplan.hardware.cpu import read_cpu
from quantplan.hardware.disk import read_disk
from quantplan.hardware.drm import read_drm
from quantplan.hardware.facts import DiskFacts, GpuFacts, HostFacts, RamFacts
from quantplan.hardware.gpu_table import known_bandwidth
from quantplan.hardware.nvidia import NvidiaFacts, read_nvidia
from quantplan.hardware.nvml import Nvml, Pynvml
from quantplan.hardware.profiles import name_devices
from quantplan.hardware.ram import read_ram
from quantplan.hardware.system import read_system
from quantplan.hardware.tree import HostTree
from quantplan.llama.process import Runner, run_tool

NVML_TIMEOUT_S = 8.0  # a card without persistence mode takes one or two seconds to wake; a wedged driver forever
_AMDSMI_TIMEOUT_S = 3.0
_DISK_TIMEOUT_S = 2.0  # a network file system whose server is gone answers never

# the kernel driver's own, WSL2's door to the host's card, and Jetson's memory manager
_NVIDIA_TRACES = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg", "dev/nvmap")


def detect_host(
    *,
    root: Path = Path("/"),
    nvml: Nvml | None = None,
    amdsmi: AmdSmi | None = None,
    env: Mapping[str, str] | None = None,
    system: str | None = None,
    run: Runner = run_tool,
    models_folder: Path | None = None,
    nvml_timeout_s: float = NVML_TIMEOUT_S,
) -> HostFacts:
    """The host's facts. `root`, `nvml`, `env`, `system` (`Linux` or `Darwin`) and `run` stand for another host where
    they are given, `amdsmi` for AMD's library; `models_folder` is whose disk is looked at (the current folder)."""
    tree = HostTree(root)
    kind = system or (platform.system() if tree.live else "Linux")
    if kind == "Darwin":
        return _apple_host(tree, run, models_folder)
    seen = os.environ if env is None else env
    limits = read_limits(tree)
    ram, warnings = read_ram(tree, limits)
    nvidia = _nvidia(tree, nvml, ram, env=seen, timeout_s=nvml_timeout_s)
    others, told = read_drm(tree, ram, known=known_bandwidth)
    return HostFacts(
        os=kind,
        cpu=read_cpu(tree, limits, n_logical_here=os.cpu_count() if tree.live else None),
        ram=ram,
        gpus=(*nvidia.gpus, *name_devices(_asked_amd(tree, others, amdsmi))),
        warnings=(*warnings, *nvidia.warnings, *told),
        disk=_disk(tree, models_folder),
        system=read_system(
            tree,
            env=seen,
            machine=platform.machine() if tree.live else None,
            driver=nvidia.driver,
            driver_cuda=nvidia.driver_cuda,
        ),
    )


def _apple_host(tree: HostTree, run: Runner, models_folder: Path | None) -> HostFacts:
    from quantplan.hardware.apple import read_apple

    mac = read_apple(run, known=known_bandwidth)
    disk = _disk(tree, models_folder)
    return HostFacts(os="Darwin", cpu=mac.cpu, ram=mac.ram, gpus=mac.gpus, warnings=mac.warnings, disk=disk)


def _asked_amd(tree: HostTree, gpus: list[GpuFacts], amdsmi: AmdSmi | None) -> list[GpuFacts]:
    door = amdsmi or (RealAmdSmi() if tree.live else None)
    if door is None or not any(gpu.vendor == "amd" for gpu in gpus):
        return gpus
    try:
        return bounded(lambda: with_amdsmi(gpus, door), timeout_s=_AMDSMI_TIMEOUT_S)
    except TookTooLong:
        return gpus


def _disk(tree: HostTree, folder: Path | None) -> DiskFacts | None:
    try:
        return bounded(lambda: read_disk(tree, folder or Path.cwd()), timeout_s=_DISK_TIMEOUT_S)
    except (TookTooLong, OSError):
        return None


def _nvidia(
    tree: HostTree, nvml: Nvml | None, ram: RamFacts, *, env: Mapping[str, str], timeout_s: float
) -> NvidiaFacts:
    """NVIDIA's devices, or one warning where there are traces of some and the driver does not answer."""
    traces = nvidia_traces(tree)
    if nvml is None and not (traces and tree.live):
        return NvidiaFacts()  # without a card the library is not even loaded: 40 ms
    door = nvml or Pynvml()
    try:
        found = bounded(lambda: read_nvidia(door, ram, env=env, known=known_bandwidth), timeout_s=timeout_s)
    except TookTooLong:
        return NvidiaFacts(warnings=(f"the NVIDIA driver did not answer in {timeout_s:g} s; assumed no NVIDIA GPU",))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return NvidiaFacts(warnings=(f"the NVIDIA driver's answer makes no sense ({said}); assumed no NVIDIA GPU",))
    if found.refused:
        told = f"there is an NVIDIA card and its driver does not answer ({found.refused}); assumed no NVIDIA GPU"
        return NvidiaFacts(refused=found.refused, warnings=(told,) if traces else ())
    return replace(found, gpus=tuple(map(_possible, found.gpus)), warnings=(*found.warnings, *_lies(found.gpus)))


def _possible(gpu: GpuFacts) -> GpuFacts:
    return gpu if gpu.free_bytes <= gpu.total_bytes else replace(gpu, free_bytes=gpu.total_bytes)


def _lies(gpus: tuple[GpuFacts, ...]) -> tuple[str, ...]:
    """What a driver said that cannot be, and what was assumed."""
    return tuple(
        f"{gpu.name} claims more free memory than it has; assumed all of it is free"
        for gpu in gpus
        if gpu.free_bytes > gpu.total_bytes
    )


def nvidia_traces(tree: HostTree) -> bool:
    """Whether the kernel knows of an NVIDIA display or 3D controller, whatever its driver says."""
    if any(tree.exists(where) for where in _NVIDIA_TRACES):
        return True
    devices = "sys/bus/pci/devices"
    return any(
        tree.text(f"{devices}/{name}/vendor") == "0x10de"
        and (tree.text(f"{devices}/{name}/class") or "").startswith("0x03")
        for name in tree.names(devices)
    )
