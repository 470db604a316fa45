"""What the exact memory model taught the search: the least that compute buffers take in a family of placements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantplan.memory.estimate import DeviceMemory
from quantplan.planner.candidates import Group, family_key
from quantplan.planner.outline import Frame
from quantplan.planner.request import Capacity

# Neighbouring placements of one family have compute buffers within this share of each other
# (tests/planner/test_compute_is_settled.py).
_SETTLED = 0.9


@dataclass(slots=True)
class Floors:
    """Bytes by GPU, by family and context: a buffer grows with the context, so what was seen at a shorter one holds."""

    seen: dict[object, dict[int, tuple[int, ...]]] = field(default_factory=dict)

    def of(self, group: Group) -> tuple[int, ...]:
        """The least that compute buffers take on each GPU of the group."""
        found = [0] * len(group.devices)
        for n_ctx, floors in self.seen.get(family_key(group), {}).items():
            if n_ctx <= group.n_ctx:
                found = [max(a, b) for a, b in zip(found, floors, strict=True)]
        return tuple(found)

    def learn(
        self, group: Group, frame: Frame, needs: Sequence[DeviceMemory], capacities: Mapping[str, Capacity]
    ) -> bool:
        """Takes the placement that did not fit out of its family, and its neighbours that cannot either. False where
        nothing smaller is left: a GPU without a layer is too full already."""
        spread = group.spread
        assert spread is not None
        floors, first = list(self.of(group)), spread.n_host
        for gpu, count in enumerate(spread.counts):
            used = frame.on_gpu(first, first + count, spread.n_cpu_moe)
            first += count
            need, capacity = needs[gpu], capacities[needs[gpu].name]
            if need.total_bytes > capacity.usable_bytes:
                if count == 0:
                    return False
                beyond = capacity.usable_bytes - capacity.taken_bytes - used + 1
                floors[gpu] = max(floors[gpu], int(_SETTLED * need.compute_bytes), beyond)
        self.seen.setdefault(family_key(group), {})[group.n_ctx] = tuple(floors)
        return True
