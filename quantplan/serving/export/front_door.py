"""What a front door lets through: the gateway's limits, for proxies that know neither tokens nor slots."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from quantplan.errors import CannotExport
from quantplan.serving.bind import is_loopback
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.gateway.limits import SHORT_ANSWER_TOKENS, Wishes, body_limit_bytes, derive
from quantplan.serving.runtimes import url_of

PORT = 8090  # of a front door on the loopback; with a name and TLS it is 443
HEADER_S, BODY_S, SILENT_S = 10, 30, 600  # a client's header and body, and the engine without a word
STALLED_S = 60  # a client that reads nothing of its answer
CONNECT_S = 5
IDLE_S = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """Limits of one deployment. `requests_per_s` is None where the plan predicts no speed."""

    in_flight: int
    per_key: int | None  # None: there is one key, which may have all of it
    requests_per_s: int | None
    burst: int
    body_bytes: int
    retry_after_s: int
    engine: str  # where the proxy finds it
    listen: str
    server_name: str | None

    @property
    def tls(self) -> bool:
        return self.server_name is not None


def front_door(told: Deployment) -> FrontDoor:
    """The limits of the gateway for this plan and queue. Raises CannotExport for a name that is no host's."""
    name = told.target.server_name
    if name is not None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
        raise CannotExport(target="a front door", why=f"{name!r} is no host name")
    limits = derive(told.plan, n_keys=told.target.n_keys, wishes=Wishes(queue=told.n_queue))
    rate = limits.requests_per_s
    decode = told.plan.decode_tokens_per_s
    host = told.target.host
    return FrontDoor(
        in_flight=limits.in_flight, per_key=limits.per_key_in_flight if told.target.n_keys > 1 else None,
        burst=limits.burst,
        requests_per_s=None if rate is None else max(1, math.ceil(rate)),
        body_bytes=body_limit_bytes(told.plan),
        retry_after_s=math.ceil(SHORT_ANSWER_TOKENS / decode.low) if decode and decode.low > 0 else 1,
        engine=url_of(host or "127.0.0.1", told.target.port),
        listen=f"127.0.0.1:{PORT}" if name is None else "443", server_name=name,
    )  # fmt: skip


def notes(told: Deployment, front: FrontDoor, proxy: str) -> tuple[str, ...]:
    """What no proxy can say, and who says it instead."""
    found = [
        f"{proxy} counts requests, not tokens: a prompt over {told.plan.n_ctx_per_slot} tokens is refused by the "
        "engine (400), and an answer is as long as its request asks",
        f"at most {front.in_flight} requests are inside ({told.plan.n_parallel} in slots, {told.n_queue} waiting); a "
        "request for several answers (n) counts as one here",
    ]  # fmt: skip
    if front.requests_per_s is None:
        found.append("the plan predicts no speed: there is no limit of requests a second")
    if not front.tls:
        found.append(f"it listens on {front.listen}, without TLS: name the server to have it answer others, with TLS")
    if not is_loopback(told.target.host or "127.0.0.1"):
        found.append(f"the engine listens on {told.target.host}: who reaches it there goes round this door")
    return tuple(found)
