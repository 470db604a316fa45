"""Planted faults: each check fires on its fault, and on no other fixture."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantplan.errors import ToolFailed
from quantplan.hardware.checks_host import SLOW_LOAD_S
from quantplan.hardware.doctor import CHECKS, diagnose
from quantplan.hardware.engine_devices import EngineDevice, named_by_engine, parse_devices
from quantplan.hardware.examine import EngineFacts, KernelSettings, Situation, examine, read_settings
from quantplan.hardware.facts import (
    CpuFacts,
    DiskFacts,
    GpuFacts,
    HostFacts,
    NumaNode,
    PcieFacts,
    RamFacts,
    SystemFacts,
)
from quantplan.hardware.finding import Severity
from quantplan.hardware.host import in_engine_order
from quantplan.hardware.system import CudaVersions, ask_nvcc, find_nvcc, linked_cuda_runtime, torch_cuda
from quantplan.hardware.tree import HostTree
from quantplan.llama.process import run_tool
from quantplan.llama.types import BuildInfo, Completed, Origin, Toolchain
from quantplan.units import GIB, MIB

GPU = GpuFacts(
    name="CUDA0",
    product="NVIDIA GeForce RTX 3090",
    vendor="nvidia",
    total_bytes=24 * GIB,
    free_bytes=23 * GIB,
    bus_id="00000000:01:00.0",
    pcie=PcieFacts(generation=4, width=16, max_generation=4, max_width=16),
    power_limit_w=350.0,
    power_default_w=350.0,
    temperature_c=60,
)
HOST = HostFacts(
    os="Linux",
    cpu=CpuFacts(model="A", n_physical=8, n_logical=16, n_threads=8, n_allowed=16),
    ram=RamFacts(total_bytes=64 * GIB, available_bytes=60 * GIB, physical_bytes=64 * GIB, swap_total_bytes=0),
    gpus=(GPU,),
    disk=DiskFacts(
        path="/models", device="/dev/nvme0n1p1", filesystem="ext4", kind="nvme", total_bytes=1000 * GIB,
        free_bytes=500 * GIB, holes=True, reflinks=False, read_bytes_per_s=3 * 10**9,
    ),
    system=SystemFacts(kernel="6.8.0", driver="580.82.07", driver_cuda=(13, 0)),
)  # fmt: skip
CUDA0 = EngineDevice(
    name="CUDA0", description="NVIDIA GeForce RTX 3090", total_bytes=24124 * MIB, free_bytes=23860 * MIB
)
HEALTHY = Situation(
    host=HOST,
    settings=KernelSettings(swappiness=60, huge_pages="madvise", numa_balancing=False),
    cuda=CudaVersions(driver="580.82.07", driver_cuda=(13, 0), nvcc=(13, 0), engine_runtime=13, torch_runtime=(13, 0)),
    engine=EngineFacts(folder="/opt/llama", backend="cuda", build_number=11312, devices=(CUDA0,)),
    model_bytes=20 * GIB,
    build_bytes=100 * GIB,
)


def host(**changes: Any) -> Situation:
    return replace(HEALTHY, host=replace(HOST, **changes))


def gpu(**changes: Any) -> Situation:
    return host(gpus=(replace(GPU, **changes),))


def disk(**changes: Any) -> Situation:
    assert HOST.disk is not None
    return host(disk=replace(HOST.disk, **changes))


def cuda(**changes: Any) -> Situation:
    return replace(HEALTHY, cuda=replace(HEALTHY.cuda, **changes))


def engine(**changes: Any) -> Situation:
    assert HEALTHY.engine is not None
    return replace(HEALTHY, engine=replace(HEALTHY.engine, **changes))


def settings(**changes: Any) -> Situation:
    return replace(HEALTHY, settings=replace(HEALTHY.settings, **changes))


NO_DRIVER = "there is an NVIDIA card and its driver does not answer (Driver Not Loaded); assumed no NVIDIA GPU"
MISMATCH = "there is an NVIDIA card and its driver does not answer (RM version mismatch); assumed no NVIDIA GPU"
HUNG = "the NVIDIA driver did not answer in 8 s; assumed no NVIDIA GPU"
NO_INSTANCE = "NVIDIA A100-SXM4-80GB is in MIG mode and has no instance: the engine sees no device there"
INSTANCES = "CUDA gives a process one MIG instance; assumed the first of 3 (2g.20gb)"
ORDER = "CUDA counts unlike cards fastest first; assumed the order of the PCI bus (CUDA_DEVICE_ORDER=PCI_BUS_ID)"
NODES = (NumaNode(node=0, cpus=(0, 1)), NumaNode(node=1, cpus=(2, 3)))
LIMITED = replace(HOST.ram, total_bytes=8 * GIB, limit_bytes=8 * GIB, limit_path="/sys/fs/cgroup")
BREAKS, HURTS, NOTE = Severity.BREAKS, Severity.HURTS, Severity.NOTE

# fault -> (situation, check, severity, part of the reason, part of the fix)
FAULTS: dict[str, tuple[Situation, str, Severity, str, str | None]] = {
    "driver not loaded": (
        replace(host(gpus=(), warnings=(NO_DRIVER,)), engine=None), "driver", BREAKS, "Driver Not Loaded", "modprobe",
    ),
    "driver and library apart": (
        replace(host(gpus=(), warnings=(MISMATCH,)), engine=None), "driver", BREAKS, "mismatch", "sudo reboot",
    ),
    "container without its card": (
        replace(host(gpus=(), warnings=(NO_DRIVER,), system=SystemFacts(container="docker")), engine=None),
        "driver", BREAKS, "Driver Not Loaded", "docker run --gpus all",
    ),
    "pod without its card": (
        replace(host(gpus=(), warnings=(NO_DRIVER,), system=SystemFacts(container="kubernetes")), engine=None),
        "driver", BREAKS, "Driver Not Loaded", "nvidia.com/gpu=1",
    ),
    "driver that hangs": (
        replace(host(gpus=(), warnings=(HUNG,)), engine=None), "driver", BREAKS, "did not answer in 8 s", "nvidia-smi",
    ),
    "MIG without an instance": (
        replace(host(gpus=(), warnings=(NO_INSTANCE,)), engine=None), "mig", BREAKS, "has no instance", "mig -cgi",
    ),
    "several MIG instances": (host(warnings=(INSTANCES,)), "mig", NOTE, "the first of 3", "CUDA_VISIBLE_DEVICES"),
    "order of unlike cards": (
        host(warnings=(ORDER,)), "detection", NOTE, "fastest first", "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
    ),
    "engine for a newer driver": (
        cuda(driver="535.183.01", driver_cuda=(12, 2), nvcc=None, torch_runtime=None),
        "driver-age", BREAKS, "CUDA 13, which needs driver 580 or newer; here is 535.183.01", "nvidia-driver-580",
    ),
    "nvcc newer than the driver": (
        cuda(driver="535.183.01", driver_cuda=(12, 2), engine_runtime=12, torch_runtime=None),
        "nvcc", HURTS, "nvcc 13.0 builds programs that driver 535.183.01 cannot run", "nvidia-driver-580",
    ),
    "torch newer than the driver": (
        cuda(driver="535.183.01", driver_cuda=(12, 2), nvcc=(12, 2), engine_runtime=12),
        "torch-cuda", HURTS, "CUDA 13.0, which driver 535.183.01 cannot run (the engine links CUDA 12)", "pip install",
    ),
    "engine without CUDA": (
        engine(backend="cpu", devices=()), "cpu-only-build", BREAKS, "built for the CPU only", "--backend cuda",
    ),
    "card only the engine sees": (
        engine(devices=(CUDA0, replace(CUDA0, name="CUDA1"))),
        "engine-devices", BREAKS, "the engine sees CUDA1", "--list-devices",
    ),
    "card the engine does not see": (
        engine(devices=()), "engine-devices", BREAKS, "does not see NVIDIA GeForce RTX 3090", "--list-devices",
    ),
    "engine with a known hole": (
        engine(build_number=8000), "security-floor", BREAKS, "b8000", "quantplan toolchain install",
    ),
    "configuration file": (
        replace(HEALTHY, config_files=("/etc/llama.cpp/config.ini",)),
        "silent-settings", HURTS, "/etc/llama.cpp/config.ini sets flags", "mv /etc/llama.cpp/config.ini",
    ),
    "variables": (
        replace(HEALTHY, variables=("LLAMA_ARG_CTX_SIZE",)),
        "silent-settings", HURTS, "LLAMA_ARG_CTX_SIZE", "unset LLAMA_ARG_CTX_SIZE",
    ),
    "quota below the cores": (
        host(cpu=replace(HOST.cpu, quota_cpus=2.5, n_threads=2)),
        "threads", HURTS, "a quota of 2.5 CPUs, and the engine by itself would start 8 threads", "--threads 2",
    ),
    "affinity below the cores": (
        host(cpu=replace(HOST.cpu, n_allowed=4, n_threads=4)), "threads", HURTS, "may use 4 CPUs", "--threads 4",
    ),
    "model above the limit": (
        replace(host(ram=LIMITED, gpus=()), engine=None),
        "memory-limit", BREAKS, "limits memory to 8.0 GiB, less than the model's 20.0 GiB", "/sys/fs/cgroup/memory.max",
    ),
    "memory limit": (host(ram=LIMITED), "memory-limit", NOTE, "limits memory to 8.0 GiB of 64.0 GiB", None),
    "zram that is not used": (
        settings(zram_swap=("/dev/zram0",)), "swap", HURTS, "it is 60", "sudo sysctl vm.swappiness=180",
    ),
    "zram and a swap file": (
        settings(zram_swap=("/dev/zram0",), disk_swap=("/swapfile",), swappiness=180),
        "swap", HURTS, "/swapfile beside compressed swap", "sudo swapoff /swapfile",
    ),
    "swap on disk": (settings(disk_swap=("/dev/sda2",)), "swap", NOTE, "/dev/sda2", "MemorySwapMax=0"),
    "no huge pages": (settings(huge_pages="never"), "huge-pages", NOTE, "4 KiB pages", "transparent_hugepage/enabled"),
    "pages on the move": (
        replace(host(cpu=replace(HOST.cpu, numa_nodes=NODES)), settings=KernelSettings(numa_balancing=True)),
        "numa-balancing", HURTS, "between 2 memory nodes", "sudo sysctl kernel.numa_balancing=0",
    ),
    "narrow slot": (
        gpu(pcie=PcieFacts(generation=4, width=4, max_generation=4, max_width=16)),
        "pcie-link", HURTS, "4 of its 16 PCIe lanes", "lspci -vv -s 0000:01:00.0",
    ),
    "hot card": (
        gpu(throttle_reasons=("software power cap", "hardware thermal slowdown"), temperature_c=93),
        "throttling", HURTS, "slowed down at 93 C: hardware thermal slowdown", "nvidia-smi -q -d PERFORMANCE",
    ),
    "capped card": (
        gpu(power_limit_w=250.0), "power-cap", NOTE, "250 of 350 W", "sudo nvidia-smi -i 00000000:01:00.0 -pl 350",
    ),
    "slow disk": (
        disk(read_bytes_per_s=200 * 10**6), "disk-speed", HURTS, "loading takes 107 s", "quantplan hardware --measure",
    ),
    "rotating disk": (
        disk(kind="hdd", read_bytes_per_s=None), "disk-speed", HURTS, "on a hdd disk", "quantplan hardware --measure",
    ),
    "no holes": (disk(filesystem="exfat", holes=False), "holes", BREAKS, "exfat under /models", "QUANTPLAN_CACHE"),
    "disk of memory": (disk(filesystem="tmpfs", kind="memory"), "holes", HURTS, "real RAM", "QUANTPLAN_CACHE"),
    "full disk": (disk(free_bytes=10 * GIB), "disk-space", BREAKS, "needs 100.0 GiB in /models, 10.0 GiB", "du -xh"),
    "port in use": (replace(HEALTHY, taken_port=8080), "port", BREAKS, "port 8080 is taken", "ss -ltnp"),
    "Windows keeps half": (
        host(system=replace(HOST.system, wsl=2)), "wsl", NOTE, "Windows gives this Linux 64 GiB", "wsl --shutdown",
    ),
    "a reading that was not believed": (
        host(warnings=("the kernel says more memory is available than there is; assumed all of it is",)),
        "detection", NOTE, "more memory is available than there is", None,
    ),
}  # fmt: skip


def test_a_healthy_host_has_no_findings() -> None:
    assert diagnose(HEALTHY) == ()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_check_fires_on_its_fault_and_no_other_does(fault: str) -> None:
    situation, check, severity, reason, fix = FAULTS[fault]
    (found,) = diagnose(situation)
    assert (found.check, found.severity) == (check, severity)
    assert reason in found.reason
    assert (found.fix is None) if fix is None else (found.fix is not None and fix in found.fix)


def test_every_check_has_a_planted_fault() -> None:
    assert {check for _, check, *_ in FAULTS.values()} == set(CHECKS)


def test_the_threshold_of_a_slow_disk() -> None:
    rate = 20 * GIB // SLOW_LOAD_S
    assert diagnose(disk(read_bytes_per_s=rate + 1)) == ()
    assert [f.check for f in diagnose(disk(read_bytes_per_s=rate - 10**6))] == ["disk-speed"]


# recorded host -> checks that fire, without an engine installed
RECORDED = {
    "h200-vm": [],
    "dual-3090": ["pcie-link", "pcie-link", "power-cap", "power-cap"],
    "gb10": [],
    "mig-a100": ["mig"],
    "wsl2": ["wsl"],
    "hybrid-laptop": [],
    "docker-v1": ["threads", "memory-limit"],
    "docker-v2-nested": ["threads", "memory-limit"],
    "kubernetes-v1": ["threads", "memory-limit"],
    "kubernetes-v2": ["threads", "memory-limit"],
    "lxc": [],
    "driver-not-loaded": ["driver"],
    "driver-mismatch": ["driver"],
    "rx7800xt": [],
    "strix-halo": [],
    "arc-b580": ["detection"],
    "apple-m3-max": [],
    "apple-intel": [],
    "lying-sysfs": ["detection", "detection"],
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_hosts(name: str, host: Callable[..., HostFacts], hosts_folder: Path) -> None:
    now = examine(replace(host(name), disk=None), root=hosts_folder / name / "root", env={}, site_packages=[])
    assert [found.check for found in diagnose(now)] == RECORDED[name]


def test_all_recorded_hosts_are_listed(hosts_folder: Path) -> None:
    assert {folder.name for folder in hosts_folder.iterdir()} == set(RECORDED)


# ---- reading the situation


def write(root: Path, files: dict[str, str]) -> HostTree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return HostTree(root)


def test_settings_are_read(tmp_path: Path) -> None:
    tree = write(
        tmp_path,
        {
            "proc/sys/vm/swappiness": "10\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
            "proc/sys/kernel/numa_balancing": "1\n",
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n/swapfile file 1 0 -2\n",
        },
    )
    assert read_settings(tree) == KernelSettings(
        swappiness=10, huge_pages="never", numa_balancing=True, disk_swap=("/swapfile",), zram_swap=("/dev/zram0",)
    )


def test_silent_files_and_variables_are_found(tmp_path: Path) -> None:
    write(tmp_path, {"etc/llama.cpp/config.ini": "", "home/me/.config/llama.cpp/config.ini": ""})
    env = {"HOME": "/home/me", "LLAMA_ARG_THREADS": "64", "LLAMA_ARG_CTX_SIZE": "1", "PATH": "/bin"}
    now = examine(HOST, root=tmp_path, env=env, site_packages=[])
    assert now.config_files == ("/etc/llama.cpp/config.ini", "/home/me/.config/llama.cpp/config.ini")
    assert now.variables == ("LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_THREADS")


def test_versions_side_by_side(tmp_path: Path) -> None:
    tree = write(
        tmp_path,
        {
            "opt/cuda-12/version.json": '{"cuda" : {"name": "CUDA SDK", "version" : "12.8.1"}}',
            "opt/cuda-12/bin/nvcc": "",
            "site/torch/version.py": "__version__ = '2.9.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n",
            "engine/libggml-cuda.so": "\x7fELF....libcudart.so.12\0libcublas.so.12\0",
        },
    )
    assert find_nvcc(tree, {"PATH": "/usr/bin:/opt/cuda-12/bin"}) == ("/opt/cuda-12", (12, 8))
    assert find_nvcc(tree, {}) == (None, None)
    assert torch_cuda([str(tmp_path / "none"), str(tmp_path / "site")]) == (13, 0)
    assert linked_cuda_runtime(tmp_path / "engine") == 12
    assert linked_cuda_runtime(tmp_path) is None


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


NVCC_SAYS = "echo 'Cuda compilation tools, release 13.0, V13.0.88'"


def test_nvcc_is_asked_where_a_shell_would_find_it(tmp_path: Path) -> None:
    """A wrapper on PATH with no toolkit beside it, as /usr/local/bin/nvcc; then a toolkit that is not on PATH."""
    toolkit = script(tmp_path / "toolkit" / "nvcc", NVCC_SAYS)
    script(tmp_path / "path" / "nvcc", f'exec {toolkit} "$@"')
    here = {"PATH": str(tmp_path / "path")}
    assert ask_nvcc(here, run_tool, folders=()) == (13, 0)
    assert ask_nvcc({"PATH": str(tmp_path)}, run_tool, folders=(str(toolkit.parent),)) == (13, 0)
    assert ask_nvcc({"PATH": str(tmp_path)}, run_tool, folders=()) is None
    script(tmp_path / "path" / "nvcc", "exit 127")
    assert ask_nvcc(here, run_tool, folders=()) is None
    script(tmp_path / "path" / "nvcc", NVCC_SAYS)
    assert examine(HOST, env=here, site_packages=[]).cuda.nvcc == (13, 0)
    assert examine(HOST, env=here, root=tmp_path, site_packages=[]).cuda.nvcc is None  # a recorded tree: nothing runs


def test_an_nvcc_that_hangs_is_left_alone() -> None:
    def slow(argv: Sequence[str], *, step: str, timeout_s: float | None = None, **rest: object) -> Completed:
        assert timeout_s == 10
        raise ToolFailed(step=step, argv=argv, returncode=124, last_lines=("stopped after 10 s",))

    assert ask_nvcc({"PATH": "/usr/bin"}, slow, folders=("/usr/bin",)) is None


def test_a_taken_port_is_seen() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert examine(HOST, env={}, port=port, site_packages=[]).taken_port == port
    assert examine(HOST, env={}, port=port, site_packages=[]).taken_port is None


LISTED = """Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23860 MiB free)
  CUDA1: NVIDIA GeForce GTX 1080 Ti (11169 MiB, 11019 MiB free)"""


class Lists:
    """A runner that prints a device list, or never comes back in time."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def __call__(self, argv: Sequence[str], *, timeout_s: float | None = None, **_: object) -> Completed:
        from quantplan.errors import ToolFailed

        assert timeout_s is not None and timeout_s <= 20
        if self.text is None:
            raise ToolFailed(step="list", argv=argv, returncode=124, last_lines=("stopped",))
        lines = tuple(self.text.splitlines())
        return Completed(argv=tuple(argv), returncode=0, seconds=0, peak_rss_bytes=None, stdout=lines, stderr=())


def tools(folder: Path) -> Toolchain:
    return Toolchain(
        origin=Origin.PATH,
        folder=folder,
        programs={"llama-server": ("llama-server",)},
        build=BuildInfo(version=None, number=11312, commit="0c1e570"),
        backend="cuda",
    )


def test_the_engine_is_asked_with_a_time_limit(tmp_path: Path) -> None:
    now = examine(HOST, env={}, toolchain=tools(tmp_path), run=Lists(LISTED), site_packages=[])
    assert now.engine is not None and now.engine.devices is not None
    assert [device.name for device in now.engine.devices] == ["CUDA0", "CUDA1"]
    hung = examine(HOST, env={}, toolchain=tools(tmp_path), run=Lists(None), site_packages=[])
    assert hung.engine is not None and hung.engine.devices is None
    assert diagnose(hung) == ()


def test_the_engines_order_and_names_win() -> None:
    small = replace(GPU, name="CUDA0", product="NVIDIA GeForce GTX 1080 Ti", total_bytes=11264 * MIB)
    large = replace(GPU, name="CUDA1", total_bytes=24576 * MIB)
    named, warnings = named_by_engine((small, large), parse_devices(LISTED.splitlines()))
    assert [(g.name, g.product) for g in named] == [
        ("CUDA0", "NVIDIA GeForce RTX 3090"),
        ("CUDA1", "NVIDIA GeForce GTX 1080 Ti"),
    ]
    assert warnings == ()


def test_unlike_cards_are_put_in_the_engines_order(tmp_path: Path) -> None:
    small = replace(GPU, name="CUDA0", product="NVIDIA GeForce GTX 1080 Ti", total_bytes=11264 * MIB)
    order = "CUDA counts unlike cards fastest first; assumed the order of the PCI bus"
    unsure = replace(HOST, gpus=(small, replace(GPU, name="CUDA1")), warnings=(order,))
    sure = in_engine_order(unsure, run=Lists(LISTED), toolchain=tools(tmp_path))
    assert [gpu.product for gpu in sure.gpus] == ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce GTX 1080 Ti"]
    assert sure.warnings == ()
    assert in_engine_order(unsure, run=Lists(None), toolchain=tools(tmp_path)) == unsure
