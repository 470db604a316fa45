"""Whether a plan can be kept here and now: its machine, its devices, and the memory that is free at this moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from quantplan.artifact.plan_file import Plan
from quantplan.errors import NotEnoughNow, OtherHost
from quantplan.hardware.facts import GpuFacts, HostFacts
from quantplan.hardware.processes import MemoryHolder
from quantplan.memory.estimate import HOST

Holders = Callable[[], Sequence[MemoryHolder]]


def check_host(plan: Plan, host: HostFacts, *, any_host: bool) -> tuple[str, ...]:
    """What is not as planned on this machine, as warnings. Raises OtherHost unless `any_host`: a plan without a
    fingerprint is for any. A memory limit set since is no other machine: what is free is measured anyway."""
    reasons = tuple(_differences(plan, host))
    unlimited = replace(host, ram=replace(host.ram, total_bytes=host.ram.physical_bytes or host.ram.total_bytes))
    known = plan.host_fingerprint in (None, host.fingerprint, unlimited.fingerprint)
    if any_host or (known and not reasons):
        return reasons
    raise OtherHost(planned=plan.host_fingerprint or "unknown", found=host.fingerprint, reasons=reasons)


def _differences(plan: Plan, host: HostFacts) -> list[str]:
    """Planned devices that are not here or have another size, and more threads than the quota leaves."""
    said = []
    cards = {gpu.name: gpu for gpu in host.gpus}
    for device in plan.memory:
        if device.name == HOST:
            continue
        card = cards.get(device.name)
        if card is None:
            said.append(f"{device.name} is not here")
        elif (
            device.capacity_bytes is not None and abs(card.total_bytes - device.capacity_bytes) > card.total_bytes / 50
        ):
            planned, found = device.capacity_bytes // 1024**2, card.total_bytes // 1024**2
            said.append(f"{device.name} has {found:,} MiB, planned for {planned:,} MiB")
    threads = max(plan.threads, plan.threads_batch)
    if threads > (host.cpu.n_allowed or host.cpu.n_logical):
        said.append(f"{threads} threads are planned, {host.cpu.n_allowed or host.cpu.n_logical} CPUs are allowed here")
    elif host.cpu.quota_cpus is not None and threads > max(host.cpu.quota_cpus, 1):
        said.append(f"{threads} threads are planned, the quota is {host.cpu.quota_cpus:g} CPUs")
    return said


def check_room(plan: Plan, host: HostFacts, *, holders: Holders) -> tuple[str, ...]:
    """What leaves less free than the plan's margin, as warnings. Raises NotEnoughNow, naming who holds the memory.

    The host's need counts the prompt cache, which grows up to its limit while serving.
    """
    said = []
    margins = {margin.device: margin.bytes for margin in plan.margin}
    cards = {gpu.name: gpu for gpu in host.gpus}
    for device in plan.memory:
        card = cards.get(device.name)
        if device.name != HOST and card is None:
            continue  # check_host has said so
        on_host = device.name == HOST
        need = device.total_bytes + (plan.cache_ram_bytes if on_host else 0)
        free = host.ram.available_bytes if card is None else card.free_bytes
        if need > free:
            held = holders() if card is None else _card_holders(card)
            raise NotEnoughNow(device=device.name, need_bytes=need, free_bytes=free,
                               holders=[(one.pid, one.name, one.held_bytes) for one in held])  # fmt: skip
        if need + margins.get(device.name, 0) > free:
            left = (free - need) // 1024**2
            said.append(f"{device.name} will have {left:,} MiB left, less than the plan's margin")
    return tuple(said)


def _card_holders(card: GpuFacts) -> tuple[MemoryHolder, ...]:
    """Who holds a card's memory, the largest first; those whose bytes the driver does not tell count as 0."""
    found = (MemoryHolder(pid=p.pid, name=p.name or "?", held_bytes=p.used_bytes or 0) for p in card.processes)
    return tuple(sorted(found, key=lambda holder: -holder.held_bytes))
