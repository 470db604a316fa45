"""What the plan says of the model that is served. The block between the marks is written by quantplan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `count` is for the tokens of a prompt, `first_token` runs from sending a request, `between_tokens` from
    waiting for the next event, `total` from the call: waiting for a place, retries and all."""

    connect_s: float
    count_s: float
    first_token_s: float
    between_tokens_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a request is sent at most, and the waits between: random up to base × 2^n, at most cap; a longer
    Retry-After than the longest is not waited for."""

    tries: int
    base_s: float
    cap_s: float
    longest_retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`n_ctx` is a request's context, `slots` how many requests run at once. What is expected is for full slots and
    the longest prompt; None where the plan predicts no speed."""

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


# plan:begin
LIMITS = Limits(
    model="quantplan-tiny",
    artifact_sha256=None,
    base_url="http://127.0.0.1:8080",
    n_ctx=1024,
    slots=2,
    max_tokens=1024,
    embeddings=False,
    expected_first_token_s=None,
    expected_per_token_s=None,
    timeouts=Timeouts(connect_s=5.0, count_s=30.0, first_token_s=600.0, between_tokens_s=600.0, total_s=3600.0),
    retries=Retries(tries=5, base_s=0.5, cap_s=8.0, longest_retry_after_s=60.0),
)
# plan:end
