"""What a client is told of a plan: its limits, and how long it may wait for what. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from quantplan.artifact.plan_file import Plan
from quantplan.errors import BadValue
from quantplan.serving.gateway.limits import Wishes, derive
from quantplan.serving.load import LoadRequest
from quantplan.serving.load_report import Promise, promise_of

CONNECT_S, COUNT_S = 5.0, 30.0  # as long as the gateway gives its engine
LEAST_S = 10.0  # a shorter wait would fail where a machine is merely busy for a moment
PATIENCE = 2.0  # times what is expected with full slots at the lowest predicted speed
# where no speed is predicted: the gateway's own patience with an engine, and an hour for an answer
UNKNOWN_FIRST_TOKEN_S, UNKNOWN_BETWEEN_S, UNKNOWN_TOTAL_S = 600.0, 600.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds, as the clients' own class of that name."""

    connect_s: float
    count_s: float
    first_token_s: float
    between_tokens_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Tries of a request, and seconds between them."""

    tries: int = 5
    base_s: float = 0.5
    cap_s: float = 8.0
    longest_retry_after_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """All that a client knows of a plan; the clients' own Limits, field by field."""

    model: str
    artifact_sha256: str | None
    base_url: str
    n_ctx: int
    slots: int
    max_tokens: int
    embeddings: bool
    expected_first_token_s: float | None
    expected_per_token_s: float | None
    timeouts: Timeouts
    retries: Retries


def client_limits(plan: Plan, *, sha256: str | None, base_url: str, max_tokens: int | None = None) -> ClientLimits:
    """The limits of a plan as the gateway derives them, and timeouts from its lowest predicted speeds."""
    limits = derive(plan, n_keys=1, wishes=Wishes(max_tokens=max_tokens))
    full = LoadRequest(n_streams=limits.slots, n_prompt=limits.n_ctx, n_answer=limits.max_tokens, n_requests=1)
    expected = promise_of(plan, full)
    return ClientLimits(
        model=plan.model, artifact_sha256=sha256, base_url=checked_url(base_url), n_ctx=limits.n_ctx,
        slots=limits.slots, max_tokens=limits.max_tokens, embeddings=plan.embeddings,
        expected_first_token_s=_rounded(expected.ttft_s), expected_per_token_s=_rounded(expected.per_token_s),
        timeouts=timeouts_of(plan, expected, max_tokens=limits.max_tokens), retries=Retries(),
    )  # fmt: skip


def timeouts_of(plan: Plan, expected: Promise, *, max_tokens: int) -> Timeouts:
    """How long to wait, with PATIENCE, and LEAST_S at least.

    First token: one answer before it in the queue (docs/gateway.md) and the longest prompts of all slots read. Between
    tokens: one batch of somebody's prompt and a token of every slot. Total: the first token and the longest answer.
    """
    prefill = plan.prefill_tokens_per_s
    if expected.ttft_s is None or expected.per_token_s is None or prefill is None:
        return Timeouts(connect_s=CONNECT_S, count_s=COUNT_S, first_token_s=UNKNOWN_FIRST_TOKEN_S,
                        between_tokens_s=UNKNOWN_BETWEEN_S, total_s=UNKNOWN_TOTAL_S)  # fmt: skip
    answer_s = max_tokens * expected.per_token_s
    first = _patient(expected.ttft_s + answer_s)
    return Timeouts(
        connect_s=CONNECT_S,
        count_s=COUNT_S,
        first_token_s=first,
        between_tokens_s=_patient(plan.n_batch / prefill.low + expected.per_token_s),
        total_s=first + _patient(answer_s),
    )


def _patient(seconds: float) -> float:
    return float(math.ceil(max(LEAST_S, PATIENCE * seconds)))


def _rounded(seconds: float | None) -> float | None:
    """To four digits: more were never predicted."""
    return None if seconds is None else float(f"{seconds:.4g}")


def checked_url(url: str) -> str:
    """The server's root of an address that may end in /v1. Raises BadValue; a password would stand in the file."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or set(' "\\`$<>{}') & set(url):
        raise BadValue(what="address", value=url, why="is not http:// or https:// with a host")
    if "@" in parts.netloc:
        raise BadValue(
            what="address", value=f"…@{parts.hostname}", why="holds a name or a password, which no client file may"
        )
    if parts.query or parts.fragment:
        raise BadValue(what="address", value=url, why="has more than a host and a path")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
