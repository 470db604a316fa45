"""The local tier's memory: what the engine printed of its buffers, and what the process holds."""

from __future__ import annotations

from quantplan.hardware.detect import nvidia_traces
from quantplan.hardware.processes import children_of
from quantplan.hardware.tree import HostTree
from quantplan.memory.estimate import HOST
from quantplan.serving.contract import Expected, Item, Tier, compared, unseen
from quantplan.serving.host_limit import most_host_bytes
from quantplan.serving.run_record import RunRecord, read_record
from quantplan.units import MIB

_PRINTED_STEP_BYTES = MIB // 100  # the engine prints hundredths of a MiB
_CARD_BYTES = 256 * MIB  # how far a card may be above its estimate, or a twentieth


def memory_items(expected: Expected, *, pid: int, held: int | None) -> tuple[Item, ...]:
    """The context's buffers and types as printed at the start, where quantplan started it; memory of the process on
    the host and on the cards. None of them is required: another's start has no record, and a limit was not passed."""
    record = read_record(pid)
    printed = _buffers(expected, record) if record else ()
    without = () if record else (unseen("buffers", Tier.LOCAL, "not started by quantplan serve", required=False),)
    return (*printed, *without, _host(expected, held), *_cards(expected, pid))


def _buffers(expected: Expected, record: RunRecord) -> tuple[Item, ...]:
    plan, local = expected.plan, Tier.LOCAL
    context = sum(one.bytes for one in record.buffers if one.part in ("KV", "RS"))
    lines = sum(1 for one in record.buffers if one.part in ("KV", "RS"))
    wanted = sum(device.context_bytes for device in plan.memory)
    types = [kind for kind in (record.type_k, record.type_v) if kind]
    items = []
    if plan.memory and lines:
        close = abs(context - wanted) <= max(_PRINTED_STEP_BYTES * (lines + 1), wanted // 100)
        items.append(compared("buffers", local, planned=wanted, found=context, equal=close, required=False,
                              why="bytes of the context, as the engine printed them"))  # fmt: skip
    if types:
        items.append(compared("printed KV types", local, planned=[plan.type_k.lower(), plan.type_v.lower()],
                              found=types, required=False))  # fmt: skip
    return tuple(items) or (unseen("buffers", local, "the engine printed none", required=False),)


def _host(expected: Expected, held: int | None) -> Item:
    """Anonymous memory against everything that the plan puts on the host, the whole prompt cache and the process."""
    plan = expected.plan
    most = most_host_bytes(plan)
    if held is None or most is None:
        return unseen("host memory", Tier.LOCAL, "the plan or the kernel tells no figure", required=False)
    return compared("host memory", Tier.LOCAL, planned=f"at most {most // MIB} MiB", found=f"{held // MIB} MiB",
                    equal=held <= most, required=False)  # fmt: skip


def _cards(expected: Expected, pid: int) -> list[Item]:
    planned = [device for device in expected.plan.memory if device.name != HOST]
    if not planned:
        return []
    if not nvidia_traces(HostTree()):
        return [unseen(f"{one.name} memory", Tier.LOCAL, "no card of NVIDIA's is here", required=False)
                for one in planned]  # fmt: skip
    from quantplan.hardware.detect import detect_host

    cards, family, items = {gpu.name: gpu for gpu in detect_host().gpus}, set(children_of(pid)), []
    for one in planned:
        card = cards.get(one.name)
        used = [process.used_bytes for process in card.processes if process.pid in family] if card else []
        name = f"{one.name} memory"
        if not used or used[0] is None:
            items.append(unseen(name, Tier.LOCAL, "the driver does not tell this process's memory", required=False))
            continue
        most = one.total_bytes + max(one.total_bytes // 20, _CARD_BYTES)
        items.append(compared(name, Tier.LOCAL, planned=f"at most {most // MIB} MiB", found=f"{used[0] // MIB} MiB",
                              equal=used[0] <= most, required=False))  # fmt: skip
    return items
