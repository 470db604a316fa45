"""Single readings: lists of CPUs, limits of groups, kinds of disk, links, AMD's library."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.hardware.amdsmi import AmdSmiRefused, with_amdsmi
from quantplan.hardware.cgroup import read_limits
from quantplan.hardware.cpu import choose_threads
from quantplan.hardware.detect import detect_host
from quantplan.hardware.disk import kind_of, probe_sparse, read_disk
from quantplan.hardware.doctor import diagnose
from quantplan.hardware.examine import examine
from quantplan.hardware.facts import GpuFacts, HostFacts
from quantplan.hardware.nvidia import throttle_reasons
from quantplan.hardware.tree import HostTree, cpu_list
from quantplan.units import GIB, MIB


def write(root: Path, files: dict[str, str]) -> HostTree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return HostTree(root)


@given(st.sets(st.integers(0, 4095), max_size=64))
def test_cpu_lists_are_read_back(cpus: set[int]) -> None:
    ordered = sorted(cpus)
    runs: list[list[int]] = []
    for cpu in ordered:
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    assert cpu_list(text) == tuple(ordered)


def test_lists_that_are_none() -> None:
    assert cpu_list(None) == cpu_list("") == cpu_list("max") == cpu_list("0-99999999") == ()


@given(
    allowed=st.sets(st.integers(0, 15), min_size=1),
    smt=st.sampled_from([1, 2]),
    quota=st.none() | st.floats(0.1, 64, allow_nan=False),
)
def test_threads_never_exceed_cores_or_quota(allowed: set[int], smt: int, quota: float | None) -> None:
    cores: dict[int, object] = {cpu: cpu // smt for cpu in range(16)}
    n_threads, _ = choose_threads(allowed=tuple(sorted(allowed)), cores=cores, fast=frozenset(), quota_cpus=quota)
    assert 1 <= n_threads <= len({cores[cpu] for cpu in allowed})
    assert quota is None or n_threads <= max(quota, 1)


MOUNT = "30 25 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@given(st.lists(st.none() | st.integers(1, 2**40), min_size=1, max_size=5))
def test_the_tightest_ancestor_counts(tmp_path_factory: pytest.TempPathFactory, limits: list[int | None]) -> None:
    root = tmp_path_factory.mktemp("groups")
    path = "".join(f"/g{index}" for index in range(len(limits)))
    files = {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": MOUNT}
    folder = "sys/fs/cgroup"
    for index, limit in enumerate(limits):
        folder += f"/g{index}"
        files[f"{folder}/memory.max"] = "max\n" if limit is None else f"{limit}\n"
    found = read_limits(write(root, files)).memory
    expected = min((limit for limit in limits if limit is not None), default=None)
    assert (found.limit_bytes if found else None) == expected


def test_a_soft_limit_counts_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": MOUNT, "sys/fs/cgroup/a/memory.max": "2000000000\n",
        "sys/fs/cgroup/a/memory.high": "1000000000\n", "sys/fs/cgroup/a/memory.current": "400000000\n",
        "sys/fs/cgroup/a/memory.stat": "inactive_file 100000000\nactive_file 50000000\n",
    }  # fmt: skip
    limits = read_limits(write(tmp_path, files))
    assert limits.memory is not None
    assert (limits.memory.limit_bytes, limits.memory.soft) == (10**9, True)
    assert limits.least_available_bytes == 10**9 - (400 - 150) * 10**6


def test_the_names_of_throttle_reasons() -> None:
    assert throttle_reasons(0x1) == ()
    assert throttle_reasons(0x44) == ("software power cap", "hardware thermal slowdown")


def test_links_that_are_up(nvml_of: Callable[[str], Any], hosts_folder: Path) -> None:
    nvml = nvml_of("dual-3090")
    nvml.answers |= {f"nvmlDeviceGetNvLinkState(d0,{link})": int(link != 2) for link in range(4)}
    found = detect_host(root=hosts_folder / "dual-3090/root", nvml=nvml, env={})
    assert [gpu.nvlink_active for gpu in found.gpus] == [3, None]


def test_processes_that_hold_memory(nvml_of: Callable[[str], Any], hosts_folder: Path) -> None:
    nvml = nvml_of("dual-3090")
    nvml.answers |= {
        "nvmlDeviceGetComputeRunningProcesses(d0)": [{"pid": 7, "usedGpuMemory": 5 * GIB}, {"pid": 8}],
        "nvmlSystemGetProcessName(7)": "/usr/bin/llama-server",
    }
    first = detect_host(root=hosts_folder / "dual-3090/root", nvml=nvml, env={}).gpus[0]
    assert [(p.pid, p.used_bytes, p.name) for p in first.processes] == [(7, 5 * GIB, "llama-server"), (8, None, None)]


# ---- disks


@pytest.mark.parametrize(
    ("filesystem", "block", "rotational", "kind"),
    [
        ("ext4", "nvme0n1", "0", "nvme"),
        ("ext4", "sda", "0", "ssd"),
        ("ext4", "sda", "1", "hdd"),
        ("ext4", "vda", "1", "virtual"),
        ("nfs4", None, None, "network"),
        ("tmpfs", None, None, "memory"),
        ("ext4", None, None, None),
    ],
)
def test_kinds_of_disk(
    filesystem: str, block: str | None, rotational: str | None, kind: str | None, tmp_path: Path
) -> None:
    tree = write(tmp_path, {f"sys/block/{block}/queue/rotational": rotational} if rotational else {})
    assert kind_of(tree, filesystem, block) == kind


def test_the_disk_below_a_mapped_partition(tmp_path: Path) -> None:
    """A logical volume on a partition of an NVMe disk."""
    number = (tmp_path / "x").parent.stat().st_dev
    tree = write(
        tmp_path,
        {
            "proc/self/mountinfo": f"25 1 {os.major(number)}:{os.minor(number)} / / rw - xfs /dev/mapper/vg-root rw\n",
            "sys/block/dm-0/dev": f"{os.major(number)}:{os.minor(number)}",
            "sys/block/dm-0/slaves/nvme0n1p3/x": "",
            "sys/block/nvme0n1/dev": "259:0",
            "sys/block/nvme0n1/nvme0n1p3/dev": "259:3",
            "sys/block/nvme0n1/device/model": "Samsung SSD 990 PRO 4TB",
        },
    )
    disk = read_disk(tree, tmp_path / "not" / "yet")
    assert disk is not None
    assert (disk.device, disk.filesystem, disk.kind, disk.holes, disk.reflinks, disk.model) == (
        "/dev/mapper/vg-root", "xfs", "nvme", True, None, "Samsung SSD 990 PRO 4TB",
    )  # fmt: skip
    assert disk.path == str(tmp_path / "not" / "yet")


def test_holes_are_tried_and_leave_nothing(tmp_path: Path) -> None:
    holes, reflinks = probe_sparse(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 * MIB)
    assert holes in (None, (tmp_path / "sparse").stat().st_blocks * 512 < 4 * MIB)
    assert reflinks in (None, True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]
    assert probe_sparse(tmp_path / "none") == (None, None)


# ---- AMD's library


class FakeAmdSmi:
    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def query(self, function: str, *args: object) -> Any:
        if function not in self.answers:
            raise AmdSmiRefused(function)
        return self.answers[function]


ANSWERS = {
    "amdsmi_get_processor_handles": ["h0"],
    "amdsmi_get_gpu_device_bdf": "0000:03:00.0",
    "amdsmi_get_gpu_asic_info": {"market_name": "AMD Radeon RX 6800"},
    "amdsmi_get_gpu_vram_info": {"vram_type": "GDDR6", "vram_bit_width": 256, "vram_max_bandwidth": 512},
}


def test_amds_library_names_a_card(host: Callable[..., HostFacts]) -> None:
    unnamed = host("lying-sysfs").gpus[0]
    (named,) = with_amdsmi([unnamed], FakeAmdSmi(ANSWERS))
    assert (named.product, named.bandwidth_bytes_per_s, named.bandwidth_source, named.bus_width_bits) == (
        "AMD Radeon RX 6800", 512 * 10**9, "driver", 256,
    )  # fmt: skip
    assert with_amdsmi([unnamed], FakeAmdSmi({})) == [unnamed]
    assert with_amdsmi([unnamed], FakeAmdSmi({**ANSWERS, "amdsmi_get_gpu_device_bdf": "0000:99:00.0"})) == [unnamed]


def test_amds_library_leaves_other_cards_alone() -> None:
    other = GpuFacts(name="CUDA0", product="X", vendor="nvidia", total_bytes=GIB, free_bytes=GIB, bus_id="0000:03:00.0")
    assert with_amdsmi([other], FakeAmdSmi(ANSWERS)) == [other]
    amd = replace(
        other, vendor="amd", product="AMD Radeon RX 7800 XT", bandwidth_source="table", bandwidth_bytes_per_s=1
    )
    (kept,) = with_amdsmi([amd], FakeAmdSmi(ANSWERS))
    assert (kept.product, kept.bandwidth_bytes_per_s) == ("AMD Radeon RX 7800 XT", 1)


# ---- whatever a kernel says, detection answers

PLACES = (
    "proc/meminfo", "proc/cpuinfo", "proc/self/cgroup", "proc/self/mountinfo", "proc/self/status", "proc/swaps",
    "proc/version", "sys/devices/system/cpu/online", "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "sys/devices/system/cpu/cpu0/cpu_capacity", "sys/devices/cpu_core/cpus", "sys/devices/cpu_atom/cpus",
    "sys/devices/system/cpu/cpu0/cache/index3/size", "sys/devices/system/cpu/cpu0/cache/index3/level",
    "sys/devices/system/node/node0/meminfo", "sys/devices/system/node/node0/cpulist", "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "sys/fs/cgroup/cpu.max",
    "sys/class/drm/card0/device/vendor", "sys/class/drm/card0/device/mem_info_vram_total",
    "sys/class/drm/card0/device/mem_info_vram_used", "sys/class/drm/card0/device/mem_info_gtt_total",
    "sys/class/drm/card0/device/resource", "sys/class/drm/card0/device/uevent", "etc/os-release",
    "sys/kernel/mm/transparent_hugepage/enabled", "proc/sys/vm/swappiness",
)  # fmt: skip
LIES = st.sampled_from(
    [
        "", "0", "-1", "max", "max max", "0 0", "0x1002", "0x8086", "99999999999999999999", "MemTotal:",
        "MemTotal: x kB", "MemTotal: 0 kB\nMemAvailable: 5 kB", "0::/..", "0::/a/b",
        "x:y", "0-", "0-3", "3-0", "[", "[always]", "K",
        "512K",
        "30 25 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "30 25 0:27 /x / - cgroup cgroup rw,memory", "a - b",
        "processor : 0\ncore id : x\nflags : avx2", "processor\nprocessor : -1", "Node 0 MemTotal: many kB",
        "Node 0 MemTotal:", "PCI_SLOT_NAME=0000:03:00.0", "Filename\n\n/dev/zram0", "Cpus_allowed_list:\t9-1",
    ]
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(PLACES), LIES.map(str.encode) | st.binary(max_size=40), max_size=12))
def test_no_kernel_can_make_detection_fail(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    root = tmp_path_factory.mktemp("lies")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    found = detect_host(root=root, env={})
    assert 0 <= found.ram.available_bytes <= max(found.ram.total_bytes, 0)
    assert 1 <= found.cpu.n_threads <= max(found.cpu.n_logical, 1)
    assert all(0 <= gpu.free_bytes <= gpu.total_bytes for gpu in found.gpus)
    assert isinstance(found.fingerprint, str)
    situation = examine(found, root=root, env={}, site_packages=[])
    assert isinstance(diagnose(situation), tuple)
