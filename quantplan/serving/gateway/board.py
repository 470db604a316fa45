"""Several models on one host: which are loaded, and swapping them through llama-server's router."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantplan.artifact.plan_file import Plan
from quantplan.serving.gateway.refusals import Refusal, engine_away
from quantplan.serving.gateway.swap import Resident, needs_of, to_unload, usable_of
from quantplan.serving.gateway.upstream import Engine, EngineAway, EngineEnded, EngineSilent

_ASK_TIMEOUT_S = 30.0
_POLL_S = 0.05
_START_S = 2.0  # after that a model that is not loading has failed between two looks
LOAD_TIMEOUT_S = 600.0
_GONE = ("unloaded", None)


class Board:
    """Keeps a model in memory while a request uses it. With one model there is nothing to do.

    A model is unloaded only when none of its requests runs; those that come meanwhile wait for its return. The
    router does the loading and unloading; what fits together decides, where the router itself only counts.
    """

    def __init__(
        self, plans: Mapping[str, Plan], engine: Engine, *, swapped: Callable[[str, str], None] | None = None
    ) -> None:
        self._engine, self._swapped = engine, swapped
        self._needs = {name: needs_of(plan) for name, plan in plans.items()}
        self._usable = usable_of(tuple(plans.values()))
        self._single = len(plans) == 1
        self._loaded: dict[str, float] = {}  # name -> when it was last asked for
        self._leaving: set[str] = set()
        self._using: Counter[str] = Counter()
        self._free = asyncio.Event()
        self._swap = asyncio.Lock()

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._needs) if self._single else tuple(self._loaded)

    async def take(self, name: str) -> None:
        """Returns when the model is loaded, and keeps it so until `give`. Raises Refusal when it cannot be."""
        if not self._single and not self._is_here(name):
            # a client that leaves must not leave a swap half done
            await asyncio.shield(asyncio.ensure_future(self._swap_in(name)))
        self._using[name] += 1
        if not self._single:
            self._loaded[name] = time.monotonic()

    def give(self, name: str) -> None:
        self._using[name] -= 1
        self._free.set()

    async def _swap_in(self, name: str) -> None:
        async with self._swap:
            if not self._is_here(name):
                await self._bring(name)

    def _is_here(self, name: str) -> bool:
        return name in self._loaded and name not in self._leaving

    async def _bring(self, name: str) -> None:
        await self._look()
        if name in self._loaded:
            return
        residents = tuple(Resident(name=one, needs=self._needs[one], last_used=at) for one, at in self._loaded.items())
        going = to_unload(self._needs[name], residents, self._usable)
        if going is None:
            raise Refusal(503, "model_does_not_fit", f"model {name!r} does not fit on this host as planned")
        self._leaving.update(going)
        try:
            await self._idle(going)
            for one in going:
                await self._change("/models/unload", one, until=_GONE)
                self._loaded.pop(one, None)
                if self._swapped:
                    self._swapped(one, name)
            await self._change("/models/load", name, until=("loaded",))
            self._loaded[name] = time.monotonic()
        finally:
            self._leaving.difference_update(going)

    async def _idle(self, names: Sequence[str]) -> None:
        while any(self._using[name] for name in names):
            self._free.clear()
            await self._free.wait()

    async def _look(self) -> None:
        """What the router has loaded now: one that died is not."""
        now = await self._states()
        for name in list(self._loaded):
            if now.get(name) != "loaded":
                del self._loaded[name]
        for name, state in now.items():
            if state == "loaded" and name in self._needs:
                self._loaded.setdefault(name, 0.0)

    async def _change(self, path: str, name: str, *, until: tuple[str | None, ...]) -> None:
        await self._ask("POST", path, {"model": name})
        begun = time.monotonic()
        started = False
        while time.monotonic() < begun + LOAD_TIMEOUT_S:
            state = (await self._states()).get(name)
            if state in until:
                return
            started = started or state == "loading" or time.monotonic() > begun + _START_S
            if started and state in _GONE:
                raise Refusal(503, "model_failed", f"model {name!r} could not be loaded", retry_after_s=5)
            await asyncio.sleep(_POLL_S)
        raise Refusal(503, "model_failed", f"model {name!r} was not {until[0]} in time", retry_after_s=5)

    async def _states(self) -> dict[str, str | None]:
        told = await self._ask("GET", "/models", None)
        return {str(one["id"]): one.get("status", {}).get("value") for one in told.get("data", ())}

    async def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        raw = json.dumps(body).encode() if body is not None else b""
        try:
            _, answer = await self._engine.ask(method, path, raw, timeout_s=_ASK_TIMEOUT_S)
            told = json.loads(answer)
        except (EngineAway, EngineEnded, EngineSilent, ValueError) as error:
            raise engine_away(str(error) or type(error).__name__, 5) from None
        return told if isinstance(told, dict) else {}
