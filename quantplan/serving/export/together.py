"""Several deployments behind one launcher: which of them fit at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from quantplan.errors import CannotExport, DoesNotFit
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.gateway.swap import fits, needs_of, usable_of

_MOST = 12  # models of which all combinations are tried


def any_so_many(together: Sequence[Sequence[int]], n_models: int) -> int:
    """How many models may be loaded at once, whichever they are: for launchers that count models, not bytes."""
    return max(
        size for size in range(1, n_models + 1)
        if size == 1 or all(any(set(chosen) <= set(one) for one in together)
                            for chosen in combinations(range(n_models), size))
    )  # fmt: skip


def check_names(deployments: Sequence[Deployment], target: str) -> None:
    """Raises CannotExport where two models have one name."""
    names = [told.alias for told in deployments]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CannotExport(target=target, why=f"two models are called {twice!r}",
                           instead="give one of the plans another name of its model")  # fmt: skip


def sets_that_fit(deployments: Sequence[Deployment], target: str) -> tuple[tuple[int, ...], ...]:
    """The largest sets of deployments (by index) that fit together on every device; each deployment is in one.

    Where a plan does not know a device's capacity, one at a time. Raises DoesNotFit, CannotExport (too many to try).
    """
    if len(deployments) > _MOST:
        raise CannotExport(target=target, why=f"more than {_MOST} models are too many to try what fits together")
    usable = usable_of([told.plan for told in deployments])
    needs = [needs_of(told.plan) for told in deployments]
    for told, need in zip(deployments, needs, strict=True):
        if usable is not None and not fits([need], usable):
            device = next(name for name in need if need[name] > usable.get(name, 0))
            raise DoesNotFit(device=device, need_bytes=need[device], free_bytes=usable.get(device, 0), what=told.alias)
    found: list[tuple[int, ...]] = []
    for size in range(len(needs), 0, -1):
        for chosen in combinations(range(len(needs)), size):
            inside = any(set(chosen) <= set(larger) for larger in found)
            if not inside and fits([needs[index] for index in chosen], usable):
                found.append(chosen)
    return tuple(sorted(found))
