"""Which models fit together, and which must go for another to come. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model: bytes by device, and when it was last asked for."""

    name: str
    needs: Mapping[str, int]
    last_used: float


def needs_of(plan: Plan) -> dict[str, int]:
    """Bytes a plan takes by device; what it keeps as prompt cache counts for the host."""
    needs = {device.name: device.total_bytes for device in plan.memory}
    return {**needs, "Host": needs.get("Host", 0) + plan.cache_ram_bytes}


def usable_of(plans: Sequence[Plan]) -> dict[str, int] | None:
    """What models may share by device: the smallest capacity any plan names, less its margin. None where a plan does
    not know a device's capacity: then one model at a time."""
    usable: dict[str, int] = {}
    for plan in plans:
        margins = {margin.device: margin.bytes for margin in plan.margin}
        for device in plan.memory:
            if device.capacity_bytes is None:
                return None
            left = device.capacity_bytes - margins.get(device.name, 0)
            usable[device.name] = min(left, usable.get(device.name, left))
    return usable


def fits(needs: Sequence[Mapping[str, int]], usable: Mapping[str, int] | None) -> bool:
    """Whether all of them lie within every device; one alone always does where nothing is known."""
    if usable is None:
        return len(needs) <= 1
    devices = {device for need in needs for device in need if need[device]}
    return all(sum(need.get(device, 0) for need in needs) <= usable.get(device, 0) for device in devices)


def to_unload(
    wanted: Mapping[str, int], loaded: Sequence[Resident], usable: Mapping[str, int] | None
) -> tuple[str, ...] | None:
    """The models that must go, longest unused first and no more than needed; None when it does not fit alone."""
    if not fits([wanted], usable):
        return None
    going: list[Resident] = []
    staying = sorted(loaded, key=lambda model: model.last_used)
    while not fits([wanted, *(model.needs for model in staying)], usable):
        going.append(staying.pop(0))
    for model in reversed(going.copy()):  # one that went before a larger one may not have had to
        if fits([wanted, model.needs, *(other.needs for other in staying)], usable):
            going.remove(model)
            staying.append(model)
    return tuple(model.name for model in going)
