"""What a client may have, derived from the plan's slots. No I/O: time comes in as an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantplan.artifact.plan_file import Plan

QUEUED_PER_SLOT = 1  # one request may wait behind each running one: its wait is at most one answer long
SHORT_ANSWER_TOKENS = 16  # the shortest answer the request rate is reckoned with
_MIN_BODY_BYTES = 1 << 20
_BODY_BYTES_PER_TOKEN = (
    64  # four letters a token, JSON's escapes, and room to be refused with a count instead of a size
)
_MEDIA_BODY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one served model. `requests_per_s` is None where the plan predicts no speed: then only in-flight holds."""

    n_ctx: int
    slots: int
    queue: int
    max_tokens: int
    per_key_in_flight: int
    requests_per_s: float | None
    burst: int

    @property
    def in_flight(self) -> int:
        """Requests admitted at most: running and waiting."""
        return self.slots + self.queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What an operator sets instead of what is derived; None is derived."""

    queue: int | None = None
    max_tokens: int | None = None
    requests_per_s: float | None = None


def derive(plan: Plan, *, n_keys: int, wishes: Wishes | None = None) -> Limits:
    """The limits of a plan.

    In flight: the slots and one waiting request a slot. A key alone may use all of it; several keys get the slots'
    number each, so that no one of them fills the queue. Rate: what all slots finish if every answer had only
    SHORT_ANSWER_TOKENS tokens at the plan's highest predicted speed: more cannot be served, whatever is asked.
    """
    wish = wishes or Wishes()
    slots = plan.n_parallel
    queue = slots * QUEUED_PER_SLOT if wish.queue is None else wish.queue
    decode = plan.decode_tokens_per_s
    rate = wish.requests_per_s
    if rate is None and decode is not None:
        rate = slots * decode.high / SHORT_ANSWER_TOKENS
    return Limits(
        n_ctx=plan.n_ctx_per_slot,
        slots=slots,
        queue=queue,
        max_tokens=min(wish.max_tokens or plan.n_ctx_per_slot, plan.n_ctx_per_slot),
        per_key_in_flight=slots + queue if n_keys <= 1 else max(1, slots),
        requests_per_s=rate,
        burst=max(1, 2 * (slots + queue)),
    )


def body_limit_bytes(plan: Plan) -> int:
    """The largest body of a request that can hold what the plan's context takes."""
    text = max(_MIN_BODY_BYTES, plan.n_ctx_per_slot * _BODY_BYTES_PER_TOKEN)
    return max(text, _MEDIA_BODY_BYTES) if plan.mmproj else text


class TokenBucket:
    """Requests over time: `burst` at once, refilled at `per_s`."""

    def __init__(self, *, per_s: float, burst: int, now: float) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._filled, self._at = float(burst), now

    def take(self, now: float) -> float:
        """0.0 when the request is within the rate; else the seconds after which one would be."""
        self._filled = min(self._burst, self._filled + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._filled >= 1.0:
            self._filled -= 1.0
            return 0.0
        return (1.0 - self._filled) / self._per_s


def retry_after_s(*, waiting: int, running_limit: int, mean_answer_s: float | None) -> int:
    """Whole seconds until a place should be free: those before it, over the places, times an answer's mean time."""
    if mean_answer_s is None:
        return 1
    return max(1, math.ceil((waiting + 1) / max(1, running_limit) * mean_answer_s))
