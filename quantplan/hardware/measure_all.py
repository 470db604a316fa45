"""Every measurement that this host allows, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from quantplan.errors import QuantplanError
from quantplan.hardware.examine import installed_toolchain
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.measure import Measured, RamAccess, measure_ram
from quantplan.hardware.measure_disk import measure_disk
from quantplan.hardware.measure_engine import layers_for, measure_device


def measure_all(host: HostFacts, folder: Path, *, say: Callable[[str], None]) -> tuple[Measured, ...]:
    """RAM, disk past the page cache and through it, and each GPU through the engine. What cannot be measured is said
    and left out."""
    tools = installed_toolchain() if host.gpus else None
    steps: list[tuple[str, Callable[[], Measured]]] = [
        ("RAM", lambda: measure_ram(host.cpu, host.ram)),
        ("RAM, reading only", lambda: measure_ram(host.cpu, host.ram, access=RamAccess.READ)),
        ("disk", lambda: measure_disk(folder)),
        ("disk through the page cache", lambda: measure_disk(folder, direct=False)),
    ]
    if tools is not None and "llama-bench" in tools.programs:
        program = tools.programs["llama-bench"]
        for gpu in host.gpus:
            steps.append((gpu.name, partial(measure_device, program, gpu.name, n_layer=layers_for(gpu.free_bytes))))
    found = []
    for what, step in steps:
        say(f"measuring {what} …")
        try:
            found.append(step())
        except QuantplanError as error:
            say(f"not measured: {error}")
    return tuple(found)
