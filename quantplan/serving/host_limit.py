"""The most memory of the host that a process may take which runs as planned."""

from __future__ import annotations

from quantplan.artifact.plan_file import Plan
from quantplan.memory.estimate import HOST
from quantplan.units import MIB

# The process beside its buffers: code, vocabulary, HTTP threads and what they have in hand. 15 to 47 MiB when ready
# (docs/memory.md), more while it answers.
PROCESS_BYTES = 256 * MIB
DRIVER_BYTES = 1024 * MIB  # what a card's driver keeps in the host's memory for a process, at most


def most_host_bytes(plan: Plan) -> int | None:
    """Everything that the plan puts on the host, the whole prompt cache, the process and its driver; None where the
    plan says nothing of the host."""
    host = next((device for device in plan.memory if device.name == HOST), None)
    if host is None:
        return None
    driver = DRIVER_BYTES if len(plan.memory) > 1 else 0
    return host.total_bytes + plan.cache_ram_bytes + PROCESS_BYTES + driver
