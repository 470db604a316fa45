"""Memory, temperature and swap against the plan, as events, while a server runs."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict

from quantplan.artifact.plan_file import Plan
from quantplan.hardware.detect import nvidia_traces
from quantplan.hardware.monitor import PlannedBytes, Sample, watch
from quantplan.hardware.nvml import Nvml, Pynvml
from quantplan.hardware.tree import HostTree
from quantplan.memory.estimate import HOST
from quantplan.serving.events import Event, Kind


def planned_bytes(plan: Plan, before: Sample) -> PlannedBytes:
    """What host and cards should hold with the plan served: what they held before, and the plan's share (on the host
    with the whole prompt cache)."""
    held = {device.name: device.used_bytes for device in before.devices}
    need = {device.name: device.total_bytes for device in plan.memory}
    host = need.pop(HOST, 0) + plan.cache_ram_bytes
    devices = {name: held.get(name, 0) + size for name, size in need.items()}
    return PlannedBytes(host_bytes=before.used_bytes + host, device_bytes=devices)


@contextlib.contextmanager
def watching(plan: Plan, tell: Callable[[Event], None], *, interval_s: float | None) -> Iterator[None]:
    """Memory events every `interval_s` while the block runs; none when it is None. Enter before the engine starts:
    what is used then is what others hold."""
    if interval_s is None:
        yield
        return
    nvml: Nvml | None = Pynvml() if nvidia_traces(HostTree()) else None
    before = next(watch(nvml=nvml, env=os.environ, count=1))
    ended = threading.Event()

    def pause(seconds: float) -> None:
        ended.wait(seconds)

    def samples() -> None:
        planned = planned_bytes(plan, before)
        for sample in watch(nvml=nvml, env=os.environ, planned=planned, interval_s=interval_s, sleep=pause):
            if ended.is_set():
                return
            tell(Event(kind=Kind.MEMORY, data=asdict(sample)))

    thread = threading.Thread(target=samples, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
