"""Machine, memory, keys and addresses: what speaks against a start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving.tiny_plan import bare_plan

from quantplan.artifact.plan_file import Margin, PlannedDevice
from quantplan.errors import KeyExposed, NotEnoughNow, OtherHost, PublicWithoutKey
from quantplan.hardware.facts import CpuFacts, GpuFacts, GpuProcess, HostFacts, RamFacts
from quantplan.hardware.processes import MemoryHolder
from quantplan.serving.api_key import keys_in, protected_key_file
from quantplan.serving.bind import check_bind
from quantplan.serving.drain import wait_quiet
from quantplan.serving.room import check_host, check_room
from quantplan.units import GIB, MIB

CARD = GpuFacts(
    name="CUDA0", product="RTX 4070", vendor="nvidia", total_bytes=12 * GIB, free_bytes=3 * GIB,
    processes=(GpuProcess(pid=7, used_bytes=1 * GIB, name="Xorg"), GpuProcess(pid=9, used_bytes=8 * GIB, name="python"),
               GpuProcess(pid=11, used_bytes=None, name=None)),
)  # fmt: skip
HOST = HostFacts(
    os="Linux", cpu=CpuFacts(model="x", n_physical=8, n_logical=16, n_threads=8, n_allowed=16),
    ram=RamFacts(total_bytes=32 * GIB, available_bytes=20 * GIB, physical_bytes=32 * GIB), gpus=(CARD,),
)  # fmt: skip


def device(name: str, size: int, *, capacity: int | None = None) -> PlannedDevice:
    return PlannedDevice(name=name, model_bytes=size, context_bytes=0, compute_bytes=0, output_bytes=0,
                         overhead_bytes=0, capacity_bytes=capacity, free_bytes=None)  # fmt: skip


def holders() -> tuple[MemoryHolder, ...]:
    return (MemoryHolder(pid=3, name="postgres", held_bytes=9 * GIB),)


def test_a_full_card_names_its_processes_largest_first() -> None:
    plan = bare_plan(memory=(device("CUDA0", 4 * GIB), device("Host", GIB)))
    with pytest.raises(NotEnoughNow) as refused:
        check_room(plan, HOST, holders=holders)
    assert str(refused.value) == (
        "the plan needs 4,096 MiB on CUDA0, which has 3,072 MiB free now; held by python (pid 9) 8,192 MiB, "
        "Xorg (pid 7) 1,024 MiB, ? (pid 11) 0 MiB"
    )
    assert refused.value.exit_code == 3


def test_the_prompt_cache_counts_on_the_host() -> None:
    plan = bare_plan(memory=(device("Host", 16 * GIB),), cache_ram_bytes=5 * GIB)
    with pytest.raises(NotEnoughNow, match=r"held by postgres \(pid 3\) 9,216 MiB"):
        check_room(plan, HOST, holders=holders)
    assert check_room(replace(plan, cache_ram_bytes=0), HOST, holders=holders) == ()
    margin = Margin(device="Host", bytes=6 * GIB, why="others")
    (said,) = check_room(replace(plan, cache_ram_bytes=0, margin=(margin,)), HOST, holders=holders)
    assert said == "Host will have 4,096 MiB left, less than the plan's margin"


def test_the_machine_it_was_made_for() -> None:
    plan = bare_plan(host_fingerprint=HOST.fingerprint, memory=(device("CUDA0", 1, capacity=12 * GIB),), threads=8)
    assert check_host(plan, HOST, any_host=False) == ()
    limited = replace(HOST, ram=replace(HOST.ram, total_bytes=4 * GIB, limit_bytes=4 * GIB))
    assert limited.fingerprint != HOST.fingerprint
    assert check_host(plan, limited, any_host=False) == ()  # a memory limit makes it no other machine
    assert check_host(replace(plan, host_fingerprint=None), HOST, any_host=False) == ()


def test_another_machine() -> None:
    plan = bare_plan(host_fingerprint="f" * 16, memory=(device("CUDA0", 1, capacity=24 * GIB), device("CUDA1", 1)))
    with pytest.raises(OtherHost) as refused:
        check_host(plan, HOST, any_host=False)
    assert refused.value.reasons == ("CUDA0 has 12,288 MiB, planned for 24,576 MiB", "CUDA1 is not here")
    assert len(check_host(plan, HOST, any_host=True)) == 2


def test_more_threads_than_the_quota_leaves() -> None:
    cpu = replace(HOST.cpu, quota_cpus=2.5)
    plan = bare_plan(host_fingerprint=HOST.fingerprint, threads=4)
    with pytest.raises(OtherHost, match=r"cannot be kept on this machine: 4 threads are planned, the quota is 2\.5"):
        check_host(plan, replace(HOST, cpu=cpu), any_host=False)
    with pytest.raises(OtherHost, match="64 threads are planned, 16 CPUs are allowed here"):
        check_host(replace(plan, threads_batch=64), HOST, any_host=False)


def test_a_key_file_is_made_once(tmp_path: Path) -> None:
    path, made = protected_key_file(tmp_path / "key", environ={})
    assert made
    assert path.stat().st_mode & 0o777 == 0o600
    (key,) = keys_in(path)
    assert protected_key_file(path, environ={}) == (path, False)
    assert keys_in(path) == (key,)


def test_key_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("a\nb\n# c\n")
    path.chmod(0o604)
    with pytest.raises(KeyExposed, match="by others"):
        protected_key_file(path, environ={})
    path.chmod(0o440)
    with pytest.raises(KeyExposed, match="by its group"):
        protected_key_file(path, environ={})
    assert protected_key_file(path, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}) == (path, False)
    assert keys_in(path) == ("a", "b")
    with pytest.raises(KeyExposed, match="is no regular file"):
        protected_key_file(tmp_path, environ={})
    with pytest.raises(KeyExposed, match="cannot be made"):
        protected_key_file(tmp_path / "no" / "key", environ={})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    check_bind(host, public=False, has_key=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_addresses_need_both(host: str) -> None:
    for public, has_key in ((False, False), (False, True), (True, False)):
        with pytest.raises(PublicWithoutKey):
            check_bind(host, public=public, has_key=has_key)
    check_bind(host, public=True, has_key=True)


def test_quiet_means_quiet_for_a_while() -> None:
    """A slot that is free for a moment may be taken by a request that waited."""
    now = 0.0
    busy = {0: True, 1: False, 2: True, 3: False}

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def wait(limit_s: float) -> tuple[bool, float]:
        nonlocal now
        now = 0.0
        done = wait_quiet(lambda: (1,) if busy.get(int(now * 5), False) else (), ended=lambda: False, limit_s=limit_s,
                          quiet_s=0.3, clock=lambda: now, sleep=sleep)  # fmt: skip
        return done, round(now, 2)

    done, at = wait(10)
    assert done
    assert 0.85 <= at <= 1.0
    assert wait(0.5)[0] is False


def test_sizes_are_what_they_say() -> None:
    assert GIB == 1024 * MIB
