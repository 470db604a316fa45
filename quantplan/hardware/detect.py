"""This host, as far as it can be read in a fraction of a second. Nothing here raises: what fails is a warning."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from quantplan.hardware.bounded import TookTooLong, bounded
from quantplan.hardware.cgroup import read_limits
from quantplan.hardware.cpu import read_cpu
from quantplan.hardware.facts import HostFacts, RamFacts
from quantplan.hardware.nvidia import NvidiaFacts, read_nvidia
from quantplan.hardware.nvml import Nvml, Pynvml
from quantplan.hardware.ram import read_ram
from quantplan.hardware.tree import HostTree

NVML_TIMEOUT_S = 8.0  # a card without persistence mode takes one or two seconds to wake; a wedged driver forever


# the kernel driver's own, WSL2's door to the host's card, and Jetson's memory manager
_NVIDIA_TRACES = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg", "dev/nvmap")


def detect_host(
    *,
    root: Path = Path("/"),
    nvml: Nvml | None = None,
    env: Mapping[str, str] | None = None,
    nvml_timeout_s: float = NVML_TIMEOUT_S,
) -> HostFacts:
    """The host's facts. `root`, `nvml` and `env` stand for another host where they are given."""
    tree = HostTree(root)
    seen = os.environ if env is None else env
    limits = read_limits(tree)
    ram, warnings = read_ram(tree, limits)
    cpu = read_cpu(tree, limits, n_logical_here=os.cpu_count() if tree.live else None)
    nvidia = _nvidia(tree, nvml, ram, env=seen, timeout_s=nvml_timeout_s)
    return HostFacts(
        os=platform.system() if tree.live else "Linux",
        cpu=cpu,
        ram=ram,
        gpus=nvidia.gpus,
        warnings=(*warnings, *nvidia.warnings),
    )


def _nvidia(
    tree: HostTree, nvml: Nvml | None, ram: RamFacts, *, env: Mapping[str, str], timeout_s: float
) -> NvidiaFacts:
    """NVIDIA's devices, or one warning where there are traces of some and the driver does not answer."""
    traces = nvidia_traces(tree)
    if nvml is None and not (traces and tree.live):
        return NvidiaFacts()  # without a card the library is not even loaded: 40 ms
    door = nvml or Pynvml()
    try:
        found = bounded(lambda: read_nvidia(door, ram, env=env), timeout_s=timeout_s)
    except TookTooLong:
        return NvidiaFacts(warnings=(f"the NVIDIA driver did not answer in {timeout_s:g} s; assumed no NVIDIA GPU",))
    except Exception as error:
        return NvidiaFacts(
            warnings=(f"the NVIDIA driver gave an answer that makes no sense ({error}); assumed no GPU",)
        )
    if found.refused and traces:
        told = f"there is an NVIDIA card and its driver does not answer ({found.refused}); assumed no NVIDIA GPU"
        return NvidiaFacts(warnings=(told,))
    return found


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
