"""The best plan of a space: best first, by upper bounds, confirmed by the exact memory model.

Candidates are grouped by what was not decided yet. A group's bound is the key of its best member under rooms that
leave out compute buffers; the group with the best bound is opened, until the best bound is that of a single candidate
whose exact memory fits. Nothing left then can be better. A candidate that does not fit teaches its family how much the
compute buffers take, and the family's next best is tried.

Pure: memory, speed and quality come in as functions (`Instruments`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from quantplan.memory.estimate import HOST
from quantplan.planner.candidates import (
    Choice,
    Effort,
    Group,
    capacities_for,
    describe,
    not_whole,
    setting_of,
    too_large_for_disk,
)
from quantplan.planner.families import Family, Rooms, best_spread, families_of, members, mixed, splits, still_fits
from quantplan.planner.floors import Floors
from quantplan.planner.instruments import Instruments, Space, depth_of, shortage, space_of
from quantplan.planner.outline import Frame, Spread, frame_of
from quantplan.planner.request import SLOTS, PlanRequest, Setting
from quantplan.planner.score import Key, Merits, cache_worth, key_of
from quantplan.units import format_mib

_TRIES = 64
_CLEARLY = 1.25  # times as fast as everything on the host: from there on, more on the GPUs is taken to be faster
_ADVISED = 1.0  # the first part of the key of a preset that nothing speaks against
_PLACED, _BATCHED, _SIZED, _EXACT = 1, 2, 3, 4


@dataclass(slots=True)
class Search:
    """One search over one space. What was learned of a model is kept for further searches of the same instruments."""

    tools: Instruments
    effort: Effort = field(default_factory=Effort)
    floors: Floors = field(default_factory=Floors)
    frames: dict[object, Frame] = field(default_factory=dict)
    paces: dict[object, tuple[float, ...]] = field(default_factory=dict)
    speeds: dict[object, tuple[float, float]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    _groups: list[tuple[tuple[float, ...], int, Group]] = field(default_factory=list)
    _order: int = 0

    def best(self, request: PlanRequest) -> Choice | None:
        """The best candidate, or None where none fits."""
        space = space_of(request, self.tools, slots=SLOTS)
        self._groups, self._order = [], 0
        has_experts = self.tools.outline_of(space.quants[0]).has_experts
        self.effort.n_raw = max(self.effort.n_raw, space.n_raw(self.tools.n_layer, has_experts=has_experts))
        now, later = self._in_two(request, space)
        self._push_all(request, space, now)
        while self._groups or later:
            if later and (not self._groups or self._groups[0][0][0] > -_ADVISED):
                later = self._push_all(request, space, later)
                continue
            negated, _, group = heapq.heappop(self._groups)
            if group.level == _EXACT:
                return self._choice(request, group, tuple(-part for part in negated))
            for opened in self._open(request, space, group):
                self._push(request, space, opened)
        return None

    def _in_two(self, request: PlanRequest, space: Space) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The presets to look at, and those that come after all others anyway, for when none of the others fits. Where
        a limit rejects presets one by one, all are looked at, so that it is told."""
        limits = (request.min_tokens_per_s, request.max_disk_bytes, self.tools.free_disk_bytes)
        if request.any_preset or any(limit is not None for limit in limits):
            return space.quants, ()
        flagged = tuple(quant for quant in space.quants if self.tools.objection(quant) is not None)
        return tuple(quant for quant in space.quants if quant not in flagged), flagged

    def _push_all(self, request: PlanRequest, space: Space, quants: tuple[str, ...]) -> tuple[str, ...]:
        for quant, kv, n_parallel in product(quants, space.kv_types, space.n_parallels):
            self._push(request, space, Group(level=0, quant=quant, kv=kv, n_parallel=n_parallel))
        return ()

    # Groups ----------------------------------------------------------------------------------------------------

    def _push(self, request: PlanRequest, space: Space, group: Group) -> None:
        bound = self._bound(request, space, group)
        if bound is not None:
            self._order += 1
            heapq.heappush(self._groups, (tuple(-part for part in bound), self._order, group))

    def _open(self, request: PlanRequest, space: Space, group: Group) -> Iterator[Group]:
        """The groups that make up this one, less those that cannot fit."""
        if group.level == 0:
            for devices in space.devices:
                has_experts = self.tools.outline_of(group.quant).has_experts
                for family in families_of(len(devices), has_experts=has_experts):
                    start = replace(group, level=_PLACED, devices=devices, family=family,
                                    n_ubatch=space.n_ubatches[0], n_ctx=space.contexts[0])  # fmt: skip
                    yield from self._placed(request, start)
        elif group.level == _PLACED:
            for n_ubatch in space.n_ubatches:
                yield from self._placed(request, replace(group, level=_BATCHED, n_ubatch=n_ubatch))
        elif group.level == _BATCHED:
            for n_ctx in space.contexts:
                yield from self._placed(request, replace(group, level=_SIZED, n_ctx=n_ctx))
        else:
            yield from self._confirmed(request, group)

    def _placed(self, request: PlanRequest, group: Group) -> Iterator[Group]:
        """The group with its best placement, if there is one."""
        rooms, frame = self._rooms(request, group), self._frame(group)
        if group.pinned:
            spread = self._pinned(group, frame, rooms)
            yield from (replace(group, spread=spread),) if spread else ()
            return
        pace, share = self._pace(group), self.tools.expert_share
        spread = best_spread(group.family, frame, rooms, pace=pace, share=share)
        if spread is None:
            if group.level == _PLACED and group.family is Family.WHOLE and group.devices == self.tools.gpus:
                told = not_whole(request, self.tools, group, frame)
                self.rejected.setdefault(told.what, told.why)
            return
        best = replace(group, spread=spread)
        yield best
        if group.level == _PLACED:
            for other in self._more(request, best, frame, rooms):
                yield replace(group, spread=other, pinned=True)

    def _pinned(self, group: Group, frame: Frame, rooms: Rooms) -> Spread | None:
        """The very spread, or where experts are on the host beside whole layers, with more of them there."""
        spread = group.spread
        assert spread is not None
        if spread.n_host == 0 or group.family is not Family.EXPERTS:
            return still_fits(spread, frame, rooms)
        return mixed(spread.n_host, frame, rooms, pace=self._pace(group), share=self.tools.expert_share)

    def _more(self, request: PlanRequest, group: Group, frame: Frame, rooms: Rooms) -> Iterator[Spread]:
        """Members of a family beside its best one, where a look at a few says that they may be faster."""
        pace, share, best = self._pace(group), self.tools.expert_share, group.spread
        assert best is not None
        yield from splits(best, frame, rooms)
        if self._hardly_faster(request, group):
            yield from members(group.family, best, frame, rooms, pace=pace, share=share)
        if group.family is not Family.EXPERTS:
            return
        mine = self._speed(request, setting_of(group))
        tried = {a: mixed(a, frame, rooms, pace=pace, share=share) for a in {1, best.n_cpu_moe // 2, best.n_cpu_moe - 1}
                 if 0 < a < best.n_cpu_moe}  # fmt: skip
        speeds = [self._speed(request, setting_of(replace(group, spread=one))) for one in tried.values() if one]
        if any(own > other for one in speeds for own, other in zip(one, mine, strict=True)):
            found = (mixed(a, frame, rooms, pace=pace, share=share) for a in range(1, best.n_cpu_moe))
            yield from (one for one in found if one is not None)

    def _hardly_faster(self, request: PlanRequest, group: Group) -> bool:
        """Whether a placement gains so little over everything on the host that less of it may gain more."""
        n = self.tools.n_layer + 1
        idle = Spread(n_host=n, counts=(0,) * len(group.devices), n_cpu_moe=0)
        mine = self._speed(request, setting_of(group))
        hosts = self._speed(request, setting_of(replace(group, spread=idle)))
        return any(own < other * _CLEARLY for own, other in zip(mine, hosts, strict=True))

    def _confirmed(self, request: PlanRequest, group: Group) -> Iterator[Group]:
        """The group as a single candidate if it fits exactly; else with the family's next best placement."""
        for _ in range(_TRIES):
            setting = setting_of(group)
            self.effort.n_exact += 1
            needs = self.tools.memory_of(setting)
            capacities = capacities_for(request, self.tools)
            short = shortage(needs, capacities)
            if short is None:
                yield replace(group, level=_EXACT)
                return
            need, capacity = short
            why = f"{need.name} needs {format_mib(need.total_bytes)}, {format_mib(capacity.usable_bytes)} may be used"
            self.rejected.setdefault(describe(setting, self.tools.n_layer), why)
            if need.name == HOST or not self.floors.learn(group, self._frame(group), needs, capacities):
                return
            following = next(self._placed(request, group), None)
            if following is None:
                return
            if following.spread != group.spread:
                yield following
                return

    # Bounds ----------------------------------------------------------------------------------------------------

    def _bound(self, request: PlanRequest, space: Space, group: Group) -> Key | None:
        """The key that no member of the group exceeds; None where none can meet the constraints."""
        self.effort.n_bounds += 1
        merits = self._merits(request, space, group)
        if request.min_tokens_per_s is not None and merits.decode < request.min_tokens_per_s:
            what = f"{group.quant} with {group.kv[0]} cache"
            why = f"at most {merits.decode:.1f} tokens/s, {request.min_tokens_per_s:g} are asked for"
            self.rejected.setdefault(what, why)
            return None
        large = too_large_for_disk(request, self.tools, group.quant)
        if large is not None:
            self.rejected.setdefault(large.what, large.why)
            return None
        return key_of(
            request, merits, n_ctx=group.n_ctx if group.level >= _SIZED else space.contexts[-1],
            n_parallel=group.n_parallel,
            n_devices=len(group.devices) if group.level else min(len(gpus) for gpus in space.devices),
            n_ubatch=group.n_ubatch if group.level >= _BATCHED else space.n_ubatches[0],
        )  # fmt: skip

    def _merits(self, request: PlanRequest, space: Space, group: Group) -> Merits:
        tried = [replace(group, level=_EXACT)] if group.level else list(self._hopeful(request, space, group))
        batches = (group.n_ubatch,) if group.level >= _BATCHED else space.n_ubatches
        measured = [
            self._speed(request, replace(setting_of(one), n_ubatch=n_ubatch)) for one in tried for n_ubatch in batches
        ]
        return Merits(
            decode=max(one[0] for one in measured), total=max(one[1] for one in measured),
            prefill=max(one[2] for one in measured), damage=self.tools.damage_of(group.quant),
            advised=self.tools.objection(group.quant) is None, cache=cache_worth(*group.kv),
        )  # fmt: skip

    def _hopeful(self, request: PlanRequest, space: Space, group: Group) -> Iterator[Group]:
        """Everything on each set of devices, or all of it on the host beside them, whether it fits or not."""
        n = self.tools.n_layer + 1
        for devices in space.devices:
            share = n // len(devices) if devices else 0
            counts = (*((share,) * (len(devices) - 1)), n - share * (len(devices) - 1)) if devices else ()
            start = replace(group, devices=devices, n_ctx=space.contexts[0], n_ubatch=space.n_ubatches[0])
            yield replace(start, spread=Spread(n_host=n, counts=(0,) * len(devices), n_cpu_moe=0))
            if devices:
                whole = replace(start, spread=Spread(n_host=0, counts=counts, n_cpu_moe=0))
                yield whole
                for n_host in range(1, n) if self._hardly_faster(request, whole) else ():
                    rest = (n - n_host, *(0,) * (len(devices) - 1))
                    yield replace(start, spread=Spread(n_host=n_host, counts=rest, n_cpu_moe=0))

    def _speed(self, request: PlanRequest, setting: Setting) -> tuple[float, float, float]:
        """Decode of one request, of all slots, and prefill, at the depth all candidates are compared at."""
        depth = depth_of(request, self.tools.n_ctx_train, setting.n_ctx)
        pooled = replace(setting, n_ctx=max(depth, 1))  # speed depends on the depth, not on the cells behind it
        one = self._asked(pooled, depth, 1)
        if setting.n_parallel == 1:
            return one[0], one[0], one[1]
        every = self._asked(pooled, depth, setting.n_parallel)
        return one[0], every[0], one[1]

    def _asked(self, setting: Setting, depth: int, n_active: int) -> tuple[float, float]:
        key = (setting, depth, n_active)
        known = self.speeds.get(key)
        if known is None:
            known = self.speeds[key] = self.tools.speed_of(setting, depth, n_active)
        return known

    def _rooms(self, request: PlanRequest, group: Group) -> Rooms:
        """What weights and caches may take: usable memory less what is needed whatever the choice, and the least that
        compute buffers were seen to take."""
        capacities = capacities_for(request, self.tools)
        floors = self.floors.of(group)
        gpus = [capacities[name] for name in group.devices]
        return Rooms(
            gpus=tuple(c.usable_bytes - c.taken_bytes - floor for c, floor in zip(gpus, floors, strict=True)),
            host=capacities[HOST].usable_bytes - capacities[HOST].taken_bytes,
            shared=tuple(c.unified for c in gpus),
        )

    def _frame(self, group: Group) -> Frame:
        key = (group.quant, group.kv, group.n_parallel, group.n_ubatch, group.n_ctx)
        known = self.frames.get(key)
        if known is None:
            outline = self.tools.outline_of(group.quant)
            known = self.frames[key] = frame_of(outline, self.tools.context_of(setting_of(group)))
        return known

    def _pace(self, group: Group) -> tuple[float, ...]:
        """Seconds that each GPU alone would take for a token: what tells the faster one."""
        if len(group.devices) < 2:
            return (1.0,) * len(group.devices)
        key = (group.quant, group.kv, group.devices)
        known = self.paces.get(key)
        if known is None:
            n = self.tools.n_layer + 1
            alone = Spread(n_host=0, counts=(n,), n_cpu_moe=0)
            settings = [setting_of(replace(group, devices=(gpu,), spread=alone)) for gpu in group.devices]
            decode = [self._asked(setting, 0, 1)[0] for setting in settings]
            known = self.paces[key] = tuple(1 / one if one else 1.0 for one in decode)
        return known

    def _choice(self, request: PlanRequest, group: Group, key: Key) -> Choice:
        setting = setting_of(group)
        decode, total, prefill = self._speed(request, setting)
        merits = Merits(
            decode=decode, total=total, prefill=prefill, damage=self.tools.damage_of(group.quant),
            advised=self.tools.objection(group.quant) is None, cache=cache_worth(*group.kv),
        )  # fmt: skip
        return Choice(setting=setting, needs=self.tools.memory_of(setting), merits=merits, key=key)
