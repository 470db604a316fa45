"""What is sent: bodies from arguments, and the waits between tries. No I/O."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from .errors import AnswerTooLong, ContextExceeded
from .limits import Limits, Retries


class _Role(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool"]


class Message(_Role, total=False):
    """A message of a chat."""

    content: str | Sequence[Mapping[str, Any]] | None
    name: str
    tool_calls: Sequence[Mapping[str, Any]]
    tool_call_id: str


class Options(TypedDict, total=False):
    """What a request may ask for. Without max_tokens the answer may fill the context; `timeout_s` is this call's own
    total; `extra` joins the body as it is."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    response_format: Mapping[str, Any]
    timeout_s: float
    extra: Mapping[str, Any]


_OWN = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n_predict",
        "n",
        "n_cmpl",
    }
)
_NOT_SENT = frozenset({"timeout_s", "extra", "max_tokens"})


def body_of(limits: Limits, content: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The body of a generation, but for max_tokens. Raises TypeError for options there are none of, ValueError for
    those in `extra` that are this client's."""
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    extra = options.get("extra", {})
    if taken := _OWN.intersection(extra):
        raise ValueError(f"extra may not set {', '.join(sorted(taken))}")
    given = {name: value for name, value in options.items() if name not in _NOT_SENT and value is not None}
    return {"model": limits.model, **content, **given, **extra,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip


def answer_tokens(limits: Limits, *, asked: int | None, n_prompt: int | None) -> int:
    """The max_tokens to send. `n_prompt` is None where the server does not count: then it must refuse by itself.

    Raises AnswerTooLong, and ContextExceeded where prompt and answer don't fit.
    """
    if asked is not None and asked < 1:
        raise ValueError("max_tokens must be at least 1")
    if asked is not None and asked > limits.max_tokens:
        raise AnswerTooLong(max_tokens=asked, limit=limits.max_tokens)
    room = limits.n_ctx - (n_prompt or 0)
    if room < (asked or 1):
        raise ContextExceeded(n_prompt_tokens=n_prompt, max_tokens=asked, n_ctx=limits.n_ctx)
    return asked if asked is not None else min(limits.max_tokens, room)


def wait_before(
    retries: Retries, *, tries: int, retry_after_s: float | None, left_s: float, share: float
) -> float | None:
    """Seconds to wait before the next try, None where there is to be none. `share` is a random number of [0, 1).

    Full jitter: anything up to base × 2^(tries − 1), at most cap; after what the server asked for, where it did.
    """
    if tries >= retries.tries:
        return None
    wait = share * min(retries.cap_s, retries.base_s * 2.0 ** (tries - 1))
    if retry_after_s is not None:
        if retry_after_s > retries.longest_retry_after_s:
            return None
        wait += retry_after_s
    return wait if wait < left_s else None


def retry_after(header: str | None, *, now: float | None = None) -> float | None:
    """Seconds of a Retry-After: a number, or a date."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = email.utils.parsedate_to_datetime(text)
        return max(0.0, at.timestamp() - (time.time() if now is None else now))
    except (TypeError, ValueError, OverflowError):
        return None
