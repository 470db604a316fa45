"""What all requests share: the models served, the keys, the engine, the counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantplan.artifact.plan_file import Plan
from quantplan.serving.gateway import refusals
from quantplan.serving.gateway.admission import Door
from quantplan.serving.gateway.board import Board
from quantplan.serving.gateway.keys import Key, find_key
from quantplan.serving.gateway.limits import TokenBucket, Wishes, body_limit_bytes, derive
from quantplan.serving.gateway.metrics import Labels, Metrics, quantile
from quantplan.serving.gateway.prompt_check import PromptCheck
from quantplan.serving.gateway.throttle import Concurrency, Rules, decide, rules_for
from quantplan.serving.gateway.upstream import Engine, EngineAway, EngineEnded, EngineSilent, Pacer

if TYPE_CHECKING:
    from quantplan.hardware.monitor import Sample
    from quantplan.serving.gateway.relay import Visit

_DEMAND_SHARE = 0.95
_READY_TIMEOUT_S = 2.0


@dataclass(slots=True, kw_only=True)
class Served:
    """A model behind the door: its places, its prompt check, and how many requests may run at once just now."""

    name: str
    plan: Plan
    door: Door
    check: PromptCheck
    rules: Rules
    concurrency: Concurrency


class House:
    """One gateway. Plans by the name a client asks for."""

    def __init__(
        self, plans: Mapping[str, Plan], engine: Engine, *, keys: Mapping[bytes, Key], wishes: Wishes | None = None
    ) -> None:
        self.engine, self.keys, self.metrics, self.pacer = engine, dict(keys), Metrics(), Pacer()
        self.several = len(plans) > 1
        self.board = Board(plans, engine, swapped=lambda old, new: self.metrics.count(
            self.metrics.swaps, unloaded=old, loaded=new))  # fmt: skip
        self.served = {name: self._serve(name, plan, wishes) for name, plan in plans.items()}
        self.body_limit_bytes = max(body_limit_bytes(plan) for plan in plans.values())
        self.draining = False
        self._rates: dict[str, TokenBucket] = {}

    def _serve(self, name: str, plan: Plan, wishes: Wishes | None) -> Served:
        door = Door(derive(plan, n_keys=len(self.keys), wishes=wishes), clock=time.monotonic)
        return Served(
            name=name, plan=plan, door=door, check=PromptCheck(self.engine, model=name, n_ctx=plan.n_ctx_per_slot),
            rules=rules_for(plan), concurrency=Concurrency(limit=plan.n_parallel),
        )  # fmt: skip

    def admit_key(self, headers: Mapping[bytes, bytes]) -> Key:
        """Whose request it is. Raises Refusal: a wrong key (401), or one over its own rate (429)."""
        if self.draining:
            raise refusals.draining()
        key = find_key(self.keys, headers)
        if key is None:
            raise refusals.wrong_key()
        if key.requests_per_minute:
            now, rate = time.monotonic(), key.requests_per_minute
            bucket = self._rates.setdefault(key.name, TokenBucket(per_s=rate / 60, burst=rate, now=now))
            if seconds := bucket.take(now):
                raise refusals.busy(max(1, round(seconds)), f"this key may send {rate} requests a minute")
        return key

    def served_as(self, model: str | None) -> Served:
        """The model a request means. One model answers to any name, as llama-server's does; of several one must be
        named. Raises Refusal (404)."""
        if not self.several:
            return next(iter(self.served.values()))
        if model not in self.served:
            raise refusals.unknown_model(model or "", tuple(self.served))
        return self.served[model]

    def finished(self, visit: Visit, outcome: str) -> None:
        """Counts a request, once."""
        key, model = visit.key.name if visit.key else "none", visit.model or "none"
        self.metrics.count(self.metrics.requests, outcome=outcome, key=key, model=model)
        if visit.model:
            self.metrics.whole.observe(time.monotonic() - visit.began, model=model)

    def take_sample(self, sample: Sample) -> None:
        """Lowers or restores what runs at once, by what the host says."""
        for served in self.served.values():
            served.concurrency = decide(served.concurrency, sample, served.rules)
            if served.concurrency.limit != served.door.limit:
                served.door.set_limit(served.concurrency.limit)

    async def ready(self) -> str | None:
        """None when a request would be answered now, else why not."""
        if self.draining:
            return "draining"
        try:
            status, _ = await self.engine.ask("GET", "/health", timeout_s=_READY_TIMEOUT_S)
        except (EngineAway, EngineEnded, EngineSilent):
            return "the engine does not answer"
        return None if status == 200 else "the engine is loading"

    def suggestion(self, served: Served) -> dict[str, int | None]:
        """Context and slots that the requests so far would have needed: 99 of 100 requests, 95 % of the busy time."""
        return {
            "n_ctx_per_slot": self.metrics.suggested_n_ctx(served.name),
            "n_parallel": quantile(served.door.demand_seconds(), _DEMAND_SHARE),
        }

    def gauges(self) -> dict[str, tuple[str, list[tuple[Labels, float]]]]:
        """Values of this moment, for Metrics.render."""
        told: dict[str, tuple[str, list[tuple[Labels, float]]]] = {
            "running": ("Requests that run.", []),
            "waiting": ("Requests that wait for a place.", []),
            "concurrency_limit": ("Requests that may run at once; under the slots while the host is strained.", []),
            "slots": ("Slots of the plan.", []),
            "context_tokens": ("Context of a request, of the plan.", []),
            "model_loaded": ("1 while the model is in memory.", []),
            "suggested_n_ctx": ("Context that 99 of 100 requests so far would have needed.", []),
            "suggested_n_parallel": ("Slots that were asked for at once in 95 % of the busy time.", []),
        }
        for served in self.served.values():
            labels, door, suggested = (("model", served.name),), served.door, self.suggestion(served)
            values = {
                "running": door.running, "waiting": door.waiting, "concurrency_limit": door.limit,
                "slots": door.limits.slots, "context_tokens": door.limits.n_ctx,
                "model_loaded": int(served.name in self.board.loaded),
                "suggested_n_ctx": suggested["n_ctx_per_slot"], "suggested_n_parallel": suggested["n_parallel"],
            }  # fmt: skip
            for name, value in values.items():
                if value is not None:
                    told[name][1].append((labels, float(value)))
        return told
