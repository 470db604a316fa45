"""What else is worth a look: plans of which none is better than another in everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from quantplan.planner.candidates import Choice
from quantplan.planner.instruments import depth_of
from quantplan.planner.request import Objective, PlanRequest
from quantplan.planner.search import Search

_TOLERANCE = 0.01  # speeds that differ by less count as equal


def dominates(a: Choice, b: Choice) -> bool:
    """Whether `a` is at least as good in everything, and better in something: faithfulness, cache, speed, context,
    slots."""
    at_least = all(x >= y * (1 - _TOLERANCE) if y > 0 else x >= y for x, y in zip(_goods(a), _goods(b), strict=True))
    return at_least and any(x > y * (1 + _TOLERANCE) if y > 0 else x > y
                            for x, y in zip(_goods(a), _goods(b), strict=True))  # fmt: skip


def _goods(choice: Choice) -> tuple[float, ...]:
    merits, setting = choice.merits, choice.setting
    return (-merits.damage, merits.cache, merits.decode, float(setting.n_ctx), float(setting.n_parallel))


def pareto(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Those that no other dominates, the most faithful first; one of those that are equal in everything."""
    kept: list[Choice] = []
    for choice in choices:
        if any(dominates(other, choice) or _alike(other, choice) for other in kept):
            continue
        kept = [other for other in kept if not dominates(choice, other)]
        kept.append(choice)
    return tuple(sorted(kept, key=lambda choice: (choice.merits.damage, -choice.merits.decode)))


def _alike(a: Choice, b: Choice) -> bool:
    return all(abs(x - y) <= _TOLERANCE * abs(x) for x, y in zip(_goods(a), _goods(b), strict=True))


def alternatives(search: Search, request: PlanRequest, best: Choice, *, contexts: Sequence[int]) -> tuple[Choice, ...]:
    """The front around a choice: every other preset at its context, its preset at other contexts; with its micro-batch,
    since that only moves the speed of prompts."""
    depth = depth_of(request, search.tools.n_ctx_train, best.setting.n_ctx)  # all are compared at the same depth
    request = replace(request, n_depth=depth, n_ubatches=(best.setting.n_ubatch,))
    asked = [replace(request, quants=(quant,), n_ctx=best.setting.n_ctx) for quant in request.quants
             if quant != best.setting.quant]  # fmt: skip
    asked += [replace(request, quants=(best.setting.quant,), n_ctx=n_ctx) for n_ctx in contexts
              if n_ctx != best.setting.n_ctx]  # fmt: skip
    found = [search.best(replace(one, any_preset=True)) for one in asked]
    front = pareto([best, *(choice for choice in found if choice is not None)])
    return tuple(choice for choice in front if choice.setting != best.setting)


def front(search: Search, request: PlanRequest, *, contexts: Sequence[int]) -> tuple[Choice, ...]:
    """The whole front: the fastest of every preset, cache type, number of slots and context."""
    depth = depth_of(request, search.tools.n_ctx_train, min(contexts))
    fastest = replace(request, objective=Objective.SPEED, any_preset=True, n_depth=depth)
    found = []
    for quant in request.quants:
        for kv in request.kv_types:
            for n_ctx in contexts:
                choice = search.best(replace(fastest, quants=(quant,), kv_types=(kv,), n_ctx=n_ctx))
                found += [choice] if choice else []
    return pareto(found)
