"""What the doctor looks at: the host, the engine, the kernel's settings, what lies about. Read here, judged there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantplan.errors import ToolMissing
from quantplan.hardware.engine_devices import EngineDevice, list_devices
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.measure import read_measured, with_measured
from quantplan.hardware.system import CudaVersions, ask_nvcc, find_nvcc, linked_cuda_runtime, torch_cuda
from quantplan.hardware.tree import HostTree
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.toolchain import SECURITY_FLOOR, find_toolchain
from quantplan.llama.types import Toolchain

SYSTEM_CONFIG = "etc/llama.cpp/config.ini"  # common/arg.cpp, common_params_apply_system_config: read first
USER_CONFIG = "llama.cpp/config.ini"  # below ${XDG_CONFIG_HOME:-~/.config}: read second


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """Settings of the kernel that help or hurt a server. None is not readable."""

    swappiness: int | None = None
    huge_pages: str | None = None  # always | madvise | never
    numa_balancing: bool | None = None
    disk_swap: tuple[str, ...] = ()
    zram_swap: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The engine as installed. `devices` is None where it could not be asked."""

    folder: str
    backend: str
    build_number: int | None = None
    devices: tuple[EngineDevice, ...] | None = None
    oldest_safe_build: int = SECURITY_FLOOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything the checks judge. Sizes of a model are None where no model is meant."""

    host: HostFacts
    settings: KernelSettings = field(default_factory=KernelSettings)
    cuda: CudaVersions = field(default_factory=CudaVersions)
    engine: EngineFacts | None = None
    variables: tuple[str, ...] = ()
    config_files: tuple[str, ...] = ()
    taken_port: int | None = None
    model_bytes: int | None = None
    build_bytes: int | None = None


def examine(
    host: HostFacts,
    *,
    root: Path = Path("/"),
    env: Mapping[str, str],
    toolchain: Toolchain | None = None,
    run: Runner = run_tool,
    port: int | None = None,
    model_bytes: int | None = None,
    build_bytes: int | None = None,
    site_packages: list[str] | None = None,
) -> Situation:
    """The situation on a host. `toolchain` is the engine that plans would use, where one is installed."""
    tree = HostTree(root)
    system = host.system
    nvcc = (ask_nvcc(env, run) if tree.live else None) or find_nvcc(tree, env)[1]
    return Situation(
        host=with_measured(host, read_measured(host)) if tree.live else host,
        settings=read_settings(tree),
        cuda=CudaVersions(
            driver=system.driver if system else None,
            driver_cuda=system.driver_cuda if system else None,
            nvcc=nvcc,
            engine_runtime=linked_cuda_runtime(toolchain.folder) if toolchain else None,
            torch_runtime=torch_cuda(sys.path if site_packages is None else site_packages),
        ),
        engine=read_engine(toolchain, run) if toolchain else None,
        variables=tuple(sorted(name for name in env if name.startswith("LLAMA_ARG_"))),
        config_files=_config_files(tree, env),
        taken_port=port if port is not None and not port_is_free(port) else None,
        model_bytes=model_bytes,
        build_bytes=build_bytes,
    )


def installed_toolchain() -> Toolchain | None:
    """The engine that plans would use, or None."""
    try:
        return find_toolchain()
    except ToolMissing:
        return None


def read_engine(toolchain: Toolchain, run: Runner) -> EngineFacts:
    """The engine's build and the devices it lists."""
    program = toolchain.programs.get("llama-server")
    return EngineFacts(
        folder=str(toolchain.folder),
        backend=toolchain.backend,
        build_number=toolchain.build.number,
        devices=list_devices(program, run) if program else None,
    )


def read_settings(tree: HostTree) -> KernelSettings:
    """The kernel's settings."""
    chosen = (tree.text("sys/kernel/mm/transparent_hugepage/enabled") or "").split("[")
    swaps = [line.split()[0] for line in (tree.text("proc/swaps") or "").splitlines()[1:] if line.split()]
    balancing = tree.integer("proc/sys/kernel/numa_balancing")
    return KernelSettings(
        swappiness=tree.integer("proc/sys/vm/swappiness"),
        huge_pages=chosen[1].split("]")[0] if len(chosen) == 2 else None,
        numa_balancing=None if balancing is None else balancing > 0,
        disk_swap=tuple(swap for swap in swaps if "/zram" not in swap),
        zram_swap=tuple(swap for swap in swaps if "/zram" in swap),
    )


def _config_files(tree: HostTree, env: Mapping[str, str]) -> tuple[str, ...]:
    user = env.get("XDG_CONFIG_HOME") or (f"{env['HOME']}/.config" if env.get("HOME") else "")
    places = [SYSTEM_CONFIG, *([f"{user}/{USER_CONFIG}"] if user else [])]
    return tuple(f"/{place.lstrip('/')}" for place in places if tree.exists(place))


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError:
            return False
    return True
