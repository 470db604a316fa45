"""Who may run now, who waits and who is told to come back: places of one model, first come, first served."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from quantplan.serving.gateway.limits import Limits, TokenBucket, retry_after_s
from quantplan.serving.gateway.refusals import bad_field, busy

_MEAN_OF = 0.2  # weight of the newest answer in the running mean


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A request that was admitted: how many places it takes, since when it runs (None while it waits)."""

    key: str
    places: int
    since: float | None = None


class Door:
    """The places of one model. Not thread-safe: one event loop."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self.limit = limits.slots  # lowered and restored by throttle.decide
        self.running = self.waiting = 0
        self._by_key: Counter[str] = Counter()
        self._queue: deque[tuple[Ticket, asyncio.Future[None]]] = deque()
        self._mean_s: float | None = None
        rate = limits.requests_per_s
        self._bucket = TokenBucket(per_s=rate, burst=limits.burst, now=clock()) if rate else None
        self._ms_at: Counter[int] = Counter()  # places asked for -> milliseconds
        self._changed = clock()

    async def enter(self, key: str, places: int, *, key_in_flight: int | None) -> Ticket:
        """A ticket, once it may run. Raises Refusal (429) when the queue, the key's share or the rate is used up."""
        limits = self.limits
        if places > limits.slots:
            raise bad_field("n", f"asks for {places} answers at once; there are {limits.slots} slots")
        share = limits.per_key_in_flight if key_in_flight is None else min(key_in_flight, limits.in_flight)
        if self.running + self.waiting + places > limits.in_flight:
            raise busy(self._retry(), f"{self.running} running and {self.waiting} waiting requests fill all places")
        if self._by_key[key] + places > share:
            raise busy(self._retry(), f"this key has {self._by_key[key]} requests in flight of {share}")
        if self._bucket is not None and (seconds := self._bucket.take(self._clock())):
            raise busy(max(1, round(seconds)), f"more than {limits.requests_per_s:g} requests a second")
        ticket = Ticket(key=key, places=places)
        self._account()
        self._by_key[key] += places
        if not self._queue and self._fits(places):
            self._start(ticket)
        else:
            await self._wait(ticket)
        return ticket

    async def _wait(self, ticket: Ticket) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((ticket, turn))
        self.waiting += ticket.places
        try:
            await turn
        except asyncio.CancelledError:
            if ticket.since is not None:  # its turn came while its client left
                self.leave(ticket)
            elif (ticket, turn) in self._queue:
                self._account()
                self._queue.remove((ticket, turn))
                self._drop(ticket)
                self._advance()
            raise

    def leave(self, ticket: Ticket) -> None:
        """The request is over, in whatever way; whoever waits longest comes in."""
        assert ticket.since is not None
        self._account()
        self.running -= ticket.places
        self._forget(ticket)
        took = self._clock() - ticket.since
        self._mean_s = took if self._mean_s is None else (1 - _MEAN_OF) * self._mean_s + _MEAN_OF * took
        self._advance()

    def set_limit(self, limit: int) -> None:
        """Other many places from now on; what runs is not stopped."""
        self.limit = limit
        self._advance()

    def demand_seconds(self) -> dict[int, float]:
        """For how long so many places were asked for at once, while any was."""
        self._account()
        return {places: ms / 1000 for places, ms in self._ms_at.items()}

    def _fits(self, places: int) -> bool:
        # one request wider than a lowered limit still runs, alone
        return self.running + places <= self.limit or self.running == 0

    def _start(self, ticket: Ticket) -> None:
        ticket.since = self._clock()
        self.running += ticket.places

    def _advance(self) -> None:
        while self._queue and self._fits(self._queue[0][0].places):
            ticket, turn = self._queue.popleft()
            if turn.cancelled():  # its client has left, and its task has not run since
                self._drop(ticket)
                continue
            self.waiting -= ticket.places
            self._start(ticket)
            turn.set_result(None)

    def _drop(self, ticket: Ticket) -> None:
        self.waiting -= ticket.places
        self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        self._by_key[ticket.key] -= ticket.places
        if self._by_key[ticket.key] <= 0:
            del self._by_key[ticket.key]

    def _retry(self) -> int:
        return retry_after_s(waiting=self.waiting, running_limit=self.limit, mean_answer_s=self._mean_s)

    def _account(self) -> None:
        now = self._clock()
        asked, passed_ms = self.running + self.waiting, round((now - self._changed) * 1000)
        if asked and passed_ms:
            self._ms_at[asked] += passed_ms
        self._changed = now
