"""What comes back: pieces of an answer as they stream, and the whole of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadAnswer, ContextExceeded, StreamFailed
from .sse import Event

DONE = "[DONE]"
_TOO_LONG = ("exceed_context_size_error", "context_length_exceeded")  # llama-server's word, and quantplan's gateway's


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the model makes, or a piece of one: then the texts are to be joined by index."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One event of a stream. `raw` is all the server said."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    usage: Usage | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer. `finish_reason` is "stop", "length", "tool_calls", or None where the server gave none."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    usage: Usage | None


@dataclass(slots=True)
class Gathered:
    """Pieces on their way to an answer."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.reasoning.append(piece.reasoning)
        for call in piece.tool_calls:
            old = self.calls.get(call.index, ToolCall(index=call.index, id="", name="", arguments=""))
            self.calls[call.index] = ToolCall(
                index=call.index,
                id=old.id or call.id,
                name=old.name + call.name,
                arguments=old.arguments + call.arguments,
            )
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage

    def answer(self) -> Answer:
        return Answer(
            text=self.text,
            reasoning="".join(self.reasoning),
            tool_calls=tuple(self.calls[index] for index in sorted(self.calls)),
            finish_reason=self.finish_reason,
            usage=self.usage,
        )


def piece_of(event: Event) -> Piece | None:
    """The piece an event carries, None for the end of the stream. Raises StreamFailed, ContextExceeded, BadAnswer."""
    if event.data == DONE:
        return None
    told = parse_object(event.data.encode(), what="an event")
    if event.name == "error" or "error" in told:
        error = told.get("error", told)
        raise too_long(error) or StreamFailed(code=word_of(error), message=message_of(error))
    try:
        choice: Mapping[str, Any] = next(iter(told.get("choices") or ()), {})
        delta = choice.get("delta") or {}
        return Piece(
            text=str(choice.get("text") or delta.get("content") or ""),
            reasoning=str(delta.get("reasoning_content") or ""),
            tool_calls=tuple(_call(call) for call in delta.get("tool_calls") or ()),
            finish_reason=choice.get("finish_reason"),
            usage=_usage(told.get("usage")),
            raw=told,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadAnswer(why="an event is no chunk of a completion") from None


def _call(told: Mapping[str, Any]) -> ToolCall:
    function = told.get("function") or {}
    return ToolCall(
        index=int(told["index"]),
        id=str(told.get("id") or ""),
        name=str(function.get("name") or ""),
        arguments=str(function.get("arguments") or ""),
    )


def _usage(told: Mapping[str, Any] | None) -> Usage | None:
    if not told:
        return None
    return Usage(prompt_tokens=int(told["prompt_tokens"]), completion_tokens=int(told.get("completion_tokens", 0)))


def parse_object(raw: bytes, *, what: str) -> dict[str, Any]:
    """A JSON object. Raises BadAnswer."""
    try:
        told = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadAnswer(why=f"{what} is no JSON") from None
    if not isinstance(told, dict):
        raise BadAnswer(why=f"{what} is no JSON object")
    return told


def error_of(raw: bytes) -> Mapping[str, Any]:
    """The error object in a refusal's body; {} where it holds none."""
    try:
        told = parse_object(raw, what="the refusal")
    except BadAnswer:
        return {}
    error = told.get("error", told)
    return error if isinstance(error, dict) else {"message": str(error)}


def word_of(error: Any) -> str | None:
    """Its own word for what is wrong: the code, or where that is a number the type."""
    if not isinstance(error, Mapping):
        return None
    code = error.get("code")
    found = code if isinstance(code, str) else error.get("type")
    return found if isinstance(found, str) else None


def message_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message or "the server says no more")


def too_long(error: Any) -> ContextExceeded | None:
    """The error as ContextExceeded where it says that the prompt is too long."""
    if not isinstance(error, Mapping) or not {error.get("code"), error.get("type")}.intersection(_TOO_LONG):
        return None
    n_prompt, n_ctx = error.get("n_prompt_tokens"), error.get("n_ctx")
    return ContextExceeded(
        n_prompt_tokens=n_prompt if isinstance(n_prompt, int) else None,
        max_tokens=None,
        n_ctx=n_ctx if isinstance(n_ctx, int) else None,
    )
