"""What a client is told when it gets no answer: OpenAI's error object, and the status and headers to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """A request that ends here. `extra` joins the error object."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s, self.extra = retry_after_s, dict(extra or {})

    @property
    def type(self) -> str:
        """OpenAI's family of the error, by status."""
        known = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> bytes:
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.extra}
        return json.dumps({"error": told}).encode()

    def event(self) -> bytes:
        """The same as a server-sent event: for a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def wrong_key() -> Refusal:
    return Refusal(401, "invalid_api_key", "the API key is missing or wrong")


def not_json(why: str) -> Refusal:
    return Refusal(400, "invalid_json", f"the request body is not JSON: {why}")


def bad_field(param: str, why: str) -> Refusal:
    return Refusal(400, "invalid_value", f"{param} {why}", param=param)


def too_long(*, n_prompt: int, n_ctx: int) -> Refusal:
    return Refusal(
        400, "context_length_exceeded",
        f"the prompt has {n_prompt} tokens and leaves no room for an answer: a request has {n_ctx} tokens of context",
        param="messages", extra={"n_prompt_tokens": n_prompt, "n_ctx": n_ctx},
    )  # fmt: skip


def too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, "request_too_large", f"the request body is larger than {limit_bytes} bytes")


def unknown_model(name: str, served: tuple[str, ...]) -> Refusal:
    return Refusal(404, "model_not_found", f"model {name!r} is not served here; served: {', '.join(served)}",
                   param="model")  # fmt: skip


def busy(retry_s: int, what: str) -> Refusal:
    return Refusal(429, "rate_limit_exceeded", f"{what}; try again in {retry_s} s", retry_after_s=retry_s)


def engine_away(why: str, retry_s: int = 1) -> Refusal:
    return Refusal(503, "engine_unavailable", f"the engine does not answer: {why}; nothing was generated",
                   retry_after_s=retry_s)  # fmt: skip


def engine_ended() -> Refusal:
    return Refusal(502, "engine_ended", "the engine ended before its answer was complete; the request is not repeated")


def engine_slow(seconds: float) -> Refusal:
    return Refusal(504, "engine_timeout", f"the engine sent nothing for {seconds:.0f} s")


def body_slow() -> Refusal:
    return Refusal(408, "request_timeout", "the request body did not arrive in time")


def left() -> Refusal:
    return Refusal(400, "client_left", "the client went away before its request was complete")


def draining() -> Refusal:
    return Refusal(503, "draining", "the server is stopping", retry_after_s=5)
