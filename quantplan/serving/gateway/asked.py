"""Reading a client's request: what it asks of which model, and a bound of its prompt that needs no tokenizer. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantplan.serving.gateway.refusals import bad_field, not_json

# Paths that generate, with the names their answer's length has there; the first is written when none is given.
GENERATING: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens", "n_predict"),
    "/v1/completions": ("max_tokens", "n_predict"),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
    "/completion": ("n_predict", "max_tokens"),
}
# Paths that take a slot and write no text.
EMBEDDING = frozenset({"/v1/embeddings", "/v1/rerank"})
# Paths that only read the prompt: no slot.
LOOKING = frozenset(
    {"/tokenize", "/detokenize", "/apply-template", "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens",
     "/v1/messages/count_tokens"}
)  # fmt: skip
_CHAT_PLAIN = frozenset({"role", "content", "name"})
# What may reach the template beside messages: then only the engine knows the prompt's length.
_REACHES_TEMPLATE = ("tools", "functions", "response_format", "json_schema", "grammar", "chat_template_kwargs",
                     "documents", "chat_template", "system", "instructions", "tool_choice")  # fmt: skip

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, understood. `text_bytes` and `n_messages` are None where the prompt is not plain text; `n_sequences`
    is how many slots it takes at once; `n_tokens` counts prompts given as tokens."""

    path: str
    body: Body
    model: str | None
    stream: bool
    n_sequences: int
    text_bytes: int | None
    n_messages: int
    n_tokens: int


def read_json(raw: bytes) -> Body:
    """The body as an object. Raises Refusal (400). Numbers JSON does not know (NaN) are refused as the engine does."""

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON value")

    try:
        told = json.loads(raw.decode("utf-8"), parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise not_json(f"it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise not_json("it is nested too deeply") from None
    except ValueError as error:
        raise not_json(str(error)) from None
    if not isinstance(told, dict):
        raise not_json("it is not an object")
    return told


def read_asked(path: str, raw: bytes) -> Asked:
    """A request from its path and body. Raises Refusal for what cannot be right."""
    body = read_json(raw)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_field("model", "must be a string")
    stream = body.get("stream", False)
    if stream is not None and not isinstance(stream, bool):
        raise bad_field("stream", "must be true or false")
    if path == "/v1/chat/completions":
        n_prompts, (text_bytes, n_messages), n_tokens = 1, _messages(body), 0
    elif path in ("/v1/completions", "/completion"):
        n_prompts, text_bytes, n_tokens = _prompts(body)
        n_messages = 0
    else:
        n_prompts, text_bytes, n_messages, n_tokens = 1, None, 0, 0
    return Asked(
        path=path, body=body, model=model, stream=bool(stream), n_sequences=n_prompts * _count(body),
        text_bytes=text_bytes, n_messages=n_messages, n_tokens=n_tokens,
    )  # fmt: skip


def _count(body: Body) -> int:
    found = body.get("n", body.get("n_cmpl"))
    if found is None:
        return 1
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise bad_field("n", "must be a whole number of at least 1")
    return found


def _messages(body: Body) -> tuple[int | None, int]:
    """(bytes of text or None when not plain text, number of messages)."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "must be a list with at least one message")
    plain = not any(body.get(name) for name in _REACHES_TEMPLATE)
    total = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_field(f"messages[{index}]", "must be an object with a role")
        plain = plain and _CHAT_PLAIN.issuperset(message)
        text = _content_bytes(message.get("content"))
        plain = plain and text is not None
        total += (text or 0) + len(message["role"]) + len(str(message.get("name", "")).encode("utf-8", "replace"))
    return (total if plain else None), len(messages)


def _content_bytes(content: Any) -> int | None:
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content.encode("utf-8", "surrogatepass"))
    if not isinstance(content, list):
        return None
    total = 0
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            return None
        total += len(part["text"].encode("utf-8", "surrogatepass")) + 1
    return total


def _prompts(body: Body) -> tuple[int, int | None, int]:
    """(number of prompts, bytes of the longest text or None, tokens of the longest prompt given as tokens)."""
    prompt = body.get("prompt")
    prompts = split_prompts(prompt)
    if prompts is None:
        return 1, None, 0
    sizes = [_prompt_size(one) for one in prompts]
    if any(size is None for size in sizes):
        return len(prompts), None, 0
    known = [size for size in sizes if size is not None]
    return len(prompts), max(text for text, _ in known), max(tokens for _, tokens in known)


def split_prompts(prompt: Any) -> Sequence[Any] | None:
    """The prompts of a completion request: a text, tokens, or a list of either. None for a form only the engine knows.
    Raises Refusal when there is none."""
    if prompt is None or prompt == []:
        raise bad_field("prompt", "is missing")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        return None
    if all(isinstance(item, int) for item in prompt):
        return [prompt]
    if all(isinstance(item, str) or _is_tokens(item) for item in prompt):
        return prompt
    return None  # text and tokens mixed in one prompt


def _is_tokens(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(token, int) for token in item)


def _prompt_size(prompt: Any) -> tuple[int, int] | None:
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "surrogatepass")), 0
    return (0, len(prompt)) if isinstance(prompt, list) else None


def cap_answer(asked: Asked, *, max_tokens: int, n_ctx: int) -> tuple[Body, int | None]:
    """(the body to send, the cap where it lowered or set the answer's length, else None).

    No length, or -1, means up to the context in llama.cpp: written only when the cap is lower. Raises Refusal for a
    length that is no number.
    """
    names = GENERATING.get(asked.path, ())
    if not names:
        return asked.body, None
    given = {name: asked.body[name] for name in names if asked.body.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise bad_field(name, "must be a whole number")
    over = {
        name: max_tokens for name, value in given.items() if value > max_tokens or (value < 0 and max_tokens < n_ctx)
    }
    if not given and max_tokens < n_ctx:
        over = {names[0]: max_tokens}
    if not over:
        return asked.body, None
    return {**asked.body, **over}, max_tokens
