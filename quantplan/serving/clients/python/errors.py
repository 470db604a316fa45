"""What a call may fail with. `partial` is the text that came before, where an answer had begun."""

from __future__ import annotations

from typing import Literal

Phase = Literal["connect", "count", "first_token", "between_tokens", "total"]


class ClientError(Exception):
    """Everything this client raises, but for wrong arguments."""

    partial: str = ""


class ContextExceeded(ClientError):
    """The prompt and the answer asked for do not fit in a request's context. None where nobody counted."""

    def __init__(self, *, n_prompt_tokens: int | None, max_tokens: int | None, n_ctx: int | None) -> None:
        prompt = "the prompt" if n_prompt_tokens is None else f"the prompt's {n_prompt_tokens} tokens"
        answer = "an answer" if max_tokens is None else f"an answer of {max_tokens} tokens"
        super().__init__(f"{prompt} and {answer} do not fit in {n_ctx or 'the'} tokens of context")
        self.n_prompt_tokens, self.max_tokens, self.n_ctx = n_prompt_tokens, max_tokens, n_ctx


class AnswerTooLong(ClientError):
    """More tokens were asked for than an answer may have."""

    def __init__(self, *, max_tokens: int, limit: int) -> None:
        super().__init__(f"an answer of {max_tokens} tokens was asked for, {limit} are allowed")
        self.max_tokens, self.limit = max_tokens, limit


class NotServed(ClientError):
    """The plan serves vectors or text, and the other was asked for."""

    def __init__(self, *, model: str, what: str) -> None:
        super().__init__(f"{model} is served without {what}")
        self.model, self.what = model, what


class HttpError(ClientError):
    """The server said no with a status; `code` is the error's own word for it."""

    def __init__(self, *, status: int, code: str | None, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.code, self.message = status, code, message


class RequestRefused(HttpError):
    """The request is wrong (4xx, and any status that is no answer): never sent again."""


class ServerFailed(HttpError):
    """The server failed at it (5xx but 503): never sent again, the engine may have begun."""


class Busy(HttpError):
    """429 or 503 until the last try, or for longer than may be waited."""

    def __init__(self, *, status: int, code: str | None, message: str, retry_after_s: float | None, tries: int) -> None:
        super().__init__(status=status, code=code, message=message)
        self.retry_after_s, self.tries = retry_after_s, tries


class Unreachable(ClientError):
    """No connection, or none that held until the first token, in any try."""

    def __init__(self, *, why: str, tries: int) -> None:
        super().__init__(f"{why} (tries: {tries})")
        self.why, self.tries = why, tries


class Interrupted(ClientError):
    """The answer had begun and did not end as it must. It is never asked for again."""

    def __init__(self, *, why: str) -> None:
        super().__init__(why)
        self.why = why


class StreamFailed(ClientError):
    """The server reported an error within its answer."""

    def __init__(self, *, code: str | None, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BadAnswer(ClientError):
    """What came is no answer of this API: another content type, bytes that are not UTF-8, no JSON, too long a line."""

    def __init__(self, *, why: str) -> None:
        super().__init__(why)
        self.why = why


class TimedOut(ClientError):
    """Nothing came for as long as the phase may take. The connection is closed: the server stops generating."""

    def __init__(self, *, phase: Phase, seconds: float) -> None:
        super().__init__(f"{phase.replace('_', ' ')}: nothing within {seconds:g} s")
        self.phase, self.seconds = phase, seconds


class Closed(ClientError):
    """The stream or the client was closed while an answer was awaited."""

    def __init__(self) -> None:
        super().__init__("closed by the caller")
