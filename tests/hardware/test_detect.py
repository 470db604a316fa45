"""Detection against recorded hosts, broken drivers, and a control group of our own on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantplan.hardware.bounded import TookTooLong, bounded
from quantplan.hardware.detect import detect_host
from quantplan.hardware.facts import HostFacts, PcieFacts
from quantplan.hardware.nvml import NvmlRefused
from quantplan.units import GIB, MIB

Host = Callable[..., HostFacts]

# host -> (physical, logical, allowed, threads, why, quota, RAM MiB, available MiB, limit's folder)
CPU_AND_RAM: dict[str, tuple[Any, ...]] = {
    "h200-vm": (16, 16, 16, 16, "physical cores", None, 128887, 128409, None),
    "dual-3090": (6, 12, 12, 6, "physical cores", None, 54272, 45056, None),
    "gb10": (20, 20, 20, 20, "physical cores", None, 124610, 115787, None),
    "wsl2": (4, 8, 8, 4, "physical cores", None, 16384, 14336, None),
    "hybrid-laptop": (10, 16, 16, 6, "performance cores", None, 15716, 10940, None),
    "docker-v1": (4, 4, 4, 2, "CPU quota", 2.5, 4096, 4092, "/sys/fs/cgroup/memory"),
    "docker-v2-nested": (8, 8, 8, 2, "CPU quota", 2.0, 1024, 924, "/sys/fs/cgroup/job.slice/job-1.slice"),
    "kubernetes-v1": (8, 8, 8, 1, "CPU quota", 0.5, 8192, 7168, "/sys/fs/cgroup/memory"),
    "kubernetes-v2": (32, 64, 8, 3, "CPU quota", 3.5, 32768, 32128, "/sys/fs/cgroup"),
    "lxc": (4, 4, 4, 4, "physical cores", None, 10240, 9153, None),
    "apple-m3-max": (16, 16, None, 12, "performance cores", None, 65536, 33593, None),
    "apple-intel": (4, 8, None, 4, "physical cores", None, 16384, 16384, None),
}


@pytest.mark.parametrize("name", CPU_AND_RAM)
def test_cpu_and_ram_of_recorded_hosts(name: str, host: Host) -> None:
    found = host(name)
    cpu, ram = found.cpu, found.ram
    assert (
        cpu.n_physical, cpu.n_logical, cpu.n_allowed, cpu.n_threads, cpu.threads_reason, cpu.quota_cpus,
        ram.total_bytes // MIB, ram.available_bytes // MIB, ram.limit_path,
    ) == CPU_AND_RAM[name]  # fmt: skip
    assert found.warnings == ()


# host -> devices: (name, product, total MiB, free MiB, GB/s, where from, unified)
GPUS: dict[str, list[tuple[Any, ...]]] = {
    "h200-vm": [("CUDA0", "NVIDIA H200", 143771, 143155, 4800, "table", False)],
    "dual-3090": [
        ("CUDA0", "NVIDIA GeForce RTX 3090", 24576, 24115, 936, "clocks", False),
        ("CUDA1", "NVIDIA GeForce RTX 3090", 24576, 24115, 936, "clocks", False),
    ],
    "gb10": [("CUDA0", "NVIDIA GB10", 124610, 115787, 273, "table", True)],
    "mig-a100": [("CUDA0", "NVIDIA A100-SXM4-80GB MIG 2g.20gb", 19968, 5602, 509, "table", False)],
    "wsl2": [("CUDA0", "NVIDIA GeForce RTX 2080 Ti", 11264, 10099, 616, "clocks", False)],
    "rx7800xt": [("ROCm0", "AMD Radeon RX 7800 XT", 16368, 15178, 624, "clocks", False)],
    "strix-halo": [("ROCm0", "Radeon 8060S Graphics", 114952, 114476, 256, "table", True)],
    "arc-b580": [("SYCL0", "Arc B580", 12288, 12288, 456, "table", False)],
    "apple-m3-max": [("MTL0", "Apple M3 Max", 49152, 33593, 0, None, True)],
    "apple-intel": [],
    "hybrid-laptop": [],
    "docker-v1": [],
    "driver-not-loaded": [],
    "driver-mismatch": [],
}


@pytest.mark.parametrize("name", GPUS)
def test_gpus_of_recorded_hosts(name: str, host: Host) -> None:
    found = [
        (
            g.name, g.product, g.total_bytes // MIB, g.free_bytes // MIB,
            (g.bandwidth_bytes_per_s or 0) // 10**9, g.bandwidth_source, g.unified,
        )
        for g in host(name).gpus
    ]  # fmt: skip
    assert found == GPUS[name]


def test_h200_is_within_three_percent_of_its_datasheet(host: Host) -> None:
    """141 GB, 4.8 TB/s, PCIe 5.0 x16: nvidia.com/en-us/data-center/h200. The clocks alone give 4,814 GB/s."""
    gpu = host("h200-vm").gpus[0]
    assert gpu.total_bytes == 143771 * MIB
    assert gpu.total_bytes == pytest.approx(141 * GIB, rel=0.03)
    assert gpu.reserved_bytes == 644939776
    assert gpu.bus_width_bits is not None and gpu.memory_clock_hz is not None
    assert 2 * gpu.memory_clock_hz * gpu.bus_width_bits // 8 == pytest.approx(4.8e12, rel=0.03)
    assert gpu.bandwidth_bytes_per_s == pytest.approx(4.8e12, rel=0.03)
    assert gpu.pcie == PcieFacts(generation=5, width=16, max_generation=5, max_width=16, card_generation=5)
    assert gpu.compute_capability == (9, 0)
    assert (gpu.power_limit_w, gpu.temperature_slowdown_c) == (700.0, 89)


def test_a_node_that_lies_about_its_memory_is_not_believed(host: Host) -> None:
    assert [node.total_bytes for node in host("h200-vm").cpu.numa_nodes] == [None]


def test_link_power_and_throttle_of_a_capped_card(host: Host) -> None:
    gpu = host("dual-3090").gpus[0]
    assert gpu.pcie == PcieFacts(generation=1, width=8, max_generation=4, max_width=16, card_generation=4)
    assert (gpu.power_limit_w, gpu.power_default_w) == (290.0, 350.0)
    assert gpu.throttle_reasons == ()


def test_driver_versions_and_ground(host: Host) -> None:
    system = host("h200-vm").system
    assert system is not None
    assert (system.driver, system.driver_cuda, system.kernel) == ("580.159.04", (13, 0), "6.18.44-gpu")
    kinds = {name: getattr(host(name).system, "container", None) for name in CPU_AND_RAM if "apple" not in name}
    assert kinds == {
        "h200-vm": None, "dual-3090": None, "gb10": None, "wsl2": None, "hybrid-laptop": None, "docker-v1": "docker",
        "docker-v2-nested": "docker", "kubernetes-v1": "kubernetes", "kubernetes-v2": "kubernetes", "lxc": "lxc",
    }  # fmt: skip
    wsl = host("wsl2").system
    assert wsl is not None and wsl.wsl == 2


def test_mig_names_the_instance_that_cuda_will_use(host: Host) -> None:
    found = host("mig-a100")
    assert found.gpus[0].mig_profile == "2g.20gb"
    assert found.warnings == ("CUDA gives a process one MIG instance; assumed the first of 3 (2g.20gb)",)
    third = host("mig-a100", env={"CUDA_VISIBLE_DEVICES": "MIG-2"})
    assert [(g.name, g.uuid, g.free_bytes // MIB) for g in third.gpus] == [("CUDA0", "MIG-2", 19955)]
    assert third.warnings == ()


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-d1"]),
        ("1,0", ["GPU-d1", "GPU-d0"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["GPU-d0"]),
        ("GPU-d1", ["GPU-d1"]),
    ],
)
def test_visible_devices_are_cudas(visible: str, uuids: list[str], host: Host) -> None:
    gpus = host("dual-3090", env={"CUDA_VISIBLE_DEVICES": visible}).gpus
    assert [gpu.uuid for gpu in gpus] == uuids
    assert [gpu.name for gpu in gpus] == [f"CUDA{index}" for index in range(len(uuids))]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("driver-not-loaded", "Driver Not Loaded"),
        ("driver-mismatch", "RM has detected an NVML/RM version mismatch."),
    ],
)
def test_a_broken_driver_costs_one_warning(name: str, said: str, host: Host) -> None:
    assert host(name).warnings == (
        f"there is an NVIDIA card and its driver does not answer ({said}); assumed no NVIDIA GPU",
    )


def test_the_loaded_modules_version_is_known_without_its_library(host: Host) -> None:
    system = host("driver-mismatch").system
    assert system is not None and system.driver == "535.129.03"


class HangingNvml:
    def query(self, function: str, *args: object) -> Any:
        time.sleep(30)


class MadNvml:
    def query(self, function: str, *args: object) -> Any:
        return "nonsense"


class OneLostCard:
    """Two cards, of which the first has fallen off the bus."""

    def __init__(self, good: Any) -> None:
        self.good = good

    def query(self, function: str, *args: object) -> Any:
        if args == ("d0",):
            raise NvmlRefused(function, 15, "GPU is lost")
        return self.good.query(function, *args)


def test_no_driver_can_hang_or_break_detection(hosts_folder: Path, nvml_of: Callable[[str], Any]) -> None:
    root = hosts_folder / "dual-3090" / "root"
    began = time.monotonic()
    hung = detect_host(root=root, nvml=HangingNvml(), env={}, nvml_timeout_s=0.2)
    assert time.monotonic() - began < 5
    assert hung.warnings == ("the NVIDIA driver did not answer in 0.2 s; assumed no NVIDIA GPU",)
    mad = detect_host(root=root, nvml=MadNvml(), env={})
    assert len(mad.warnings) == 1 and mad.warnings[0].startswith(
        "the NVIDIA driver's answer makes no sense (ValueError"
    )
    lost = detect_host(root=root, nvml=OneLostCard(nvml_of("dual-3090")), env={})
    assert lost.warnings == ("NVIDIA device 0 does not answer (GPU is lost); it is left out",)
    assert [gpu.uuid for gpu in lost.gpus] == ["GPU-d1"]


def test_bounded_passes_answers_and_errors_on() -> None:
    assert bounded(lambda: 7, timeout_s=5) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, timeout_s=5)
    with pytest.raises(TookTooLong):
        bounded(lambda: time.sleep(5), timeout_s=0.05)


def test_a_sysfs_that_lies_is_said_to(host: Host) -> None:
    found = host("lying-sysfs")
    assert found.ram.available_bytes == found.ram.total_bytes == 8 * GIB
    assert found.gpus[0].free_bytes == found.gpus[0].total_bytes
    assert found.cpu.n_physical == 8
    assert found.warnings == (
        "the kernel says more memory is available than there is; assumed all of it is",
        "AMD GPU 1002:73bf (0000:03:00.0) claims 99999999999 bytes used of 17163091968; assumed nothing is used",
    )


def test_an_empty_host_is_not_an_error(tmp_path: Path) -> None:
    found = detect_host(root=tmp_path, env={})
    assert (found.cpu.n_threads, found.ram.total_bytes, found.gpus) == (1, 0, ())
    assert found.warnings == ("the kernel does not say how much memory there is; assumed 0 bytes of RAM",)


def test_swap_in_compressed_memory(host: Host) -> None:
    ram = host("hybrid-laptop").ram
    assert (ram.swap_total_bytes, ram.zram_bytes) == (2097148 * 1024, 2097148 * 1024)


def test_every_fixture_names_its_source(hosts_folder: Path) -> None:
    for folder in hosts_folder.iterdir():
        text = (folder / "SOURCE.md").read_text()
        assert "http" in text or "scripts/record_host.py" in text, folder
        assert "onstructed" in text, folder


# ---- this machine

CHILD = "import json; from quantplan.hardware.detect import detect_host; print(json.dumps(detect_host().to_json()))"


def in_child(*, join: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a process of its own detects, after joining the given control groups."""
    steps = "".join(f"open({str(group / 'cgroup.procs')!r}, 'w').write('0');" for group in join)
    argv = [sys.executable, "-c", steps + CHILD]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2])
    result: dict[str, Any] = json.loads(told.stdout)
    return result


def own_groups() -> list[tuple[Path, dict[str, str]]]:
    """Folders in which a test may make control groups here, with the files that set 512 MiB and one CPU."""
    base = Path("/sys/fs/cgroup")
    v1 = [
        (base / "memory", {"memory.limit_in_bytes": str(512 * MIB)}),
        (base / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
    ]
    v2 = (base, {"memory.max": str(512 * MIB), "cpu.max": "100000 100000"})
    wanted = [v2] if (base / "cgroup.controllers").exists() else [pair for pair in v1 if pair[0].is_dir()]
    return [pair for pair in wanted if os.access(pair[0], os.W_OK)]


def test_a_real_control_group_changes_the_answer() -> None:
    """Where groups are writable a limited child must see its limits; where they are not, both views must agree."""
    plain = in_child()
    made: list[Path] = []
    try:
        for folder, files in own_groups():
            group = folder / f"quantplan-test-{os.getpid()}"
            try:
                group.mkdir()
                made.append(group)
                for name, value in files.items():
                    (group / name).write_text(value)
            except OSError:
                continue  # read-only, or a controller that is not delegated
        written = [g for g in made if any(g.joinpath(n).exists() for n in ("memory.max", "memory.limit_in_bytes"))]
        limited = in_child(join=tuple(made))
        if written:
            assert limited["ram"]["limit_bytes"] == limited["ram"]["total_bytes"] == 512 * MIB
            assert limited["ram"]["limit_path"] == str(written[0])
            assert limited["ram"]["available_bytes"] <= 512 * MIB < plain["ram"]["total_bytes"]
        else:
            assert limited["ram"]["total_bytes"] == plain["ram"]["total_bytes"]
        if any(g.joinpath(n).exists() for g in made for n in ("cpu.max", "cpu.cfs_quota_us")):
            assert (limited["cpu"]["quota_cpus"], limited["cpu"]["n_threads"]) == (1.0, 1)
    finally:
        for group in made:
            group.rmdir()


def test_affinity_of_this_process_limits_the_threads() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {allowed[0]})
        found = detect_host()
        assert (found.cpu.n_allowed, found.cpu.n_threads) == (1, 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_detection_here_is_fast_and_does_not_contradict_the_system() -> None:
    detect_host()
    began = time.perf_counter()
    found = detect_host()
    assert time.perf_counter() - began < 0.5
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.ram.physical_bytes == pytest.approx(pages, rel=0.02)
    assert found.cpu.n_logical == os.cpu_count()
    assert 1 <= found.cpu.n_threads <= len(os.sched_getaffinity(0))
