"""The load check: as many streams as planned, prompts as long as planned, and what came of them."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from quantplan.errors import ServerUnreachable
from quantplan.serving.endpoint import Broken, Endpoint, Reply, find_model

_CHAT = "/v1/chat/completions"
_STREAM_TIMEOUT_S = 600.0
_MAX_WAIT_S = 30.0
_SPARE_TOKENS = 8  # words do not all take the same number of tokens
_WORDS = ("one", "two", "red", "blue", "cat", "dog", "sun", "tree", "road", "bread", "water", "house", "stone", "light")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What is asked: streams at once, prompt and answer in tokens, how many requests in all."""

    n_streams: int
    n_prompt: int
    n_answer: int
    n_requests: int
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request and what came of it. Seconds from sending it; None where it did not come so far."""

    ttft_s: float | None
    whole_s: float
    n_prompt: int | None
    n_answer: int
    refused: int  # answers 429 or 503 before it was let in
    error: str | None

    @property
    def per_token_s(self) -> float | None:
        """Mean time of a token after the first."""
        if self.ttft_s is None or self.n_answer < 2:
            return None
        return (self.whole_s - self.ttft_s) / (self.n_answer - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """Words a prompt needs: tokens = fixed + per_word × words, measured on the server."""

    model: str
    fixed: float
    per_word: float

    def words(self, n_tokens: int) -> int:
        return max(1, int((n_tokens - self.fixed) / self.per_word))


def measure_prompt(server: Endpoint, *, n_prompt: int) -> PromptShape:
    """Asks the server how long two prompts are. Raises ServerUnreachable: no answer as OpenAI's API gives."""
    model = find_model(server)
    few, many = 8, max(16, min(256, n_prompt // 4))
    counts = [_prompt_tokens(server, model, words) for words in (few, many)]
    per_word = (counts[1] - counts[0]) / (many - few)
    if per_word <= 0:
        raise ServerUnreachable(url=server.url, why="counts the tokens of a longer prompt as no more")
    return PromptShape(model=model, fixed=counts[0] - per_word * few, per_word=per_word)


def _prompt_tokens(server: Endpoint, model: str, words: int) -> int:
    body = _body(model, _text(random.Random(words), words), n_answer=1, stream=False)
    try:
        reply = server.ask("POST", _CHAT, body, timeout_s=_STREAM_TIMEOUT_S)
    except Broken as error:
        raise ServerUnreachable(url=server.url, why=f"does not answer ({error})") from None
    if reply.status != 200:
        raise ServerUnreachable(url=server.url, why=f"answered {reply.status}: {reply.message()}")
    try:
        return int(reply.json()["usage"]["prompt_tokens"])
    except (TypeError, KeyError, ValueError):
        raise ServerUnreachable(url=server.url, why="does not say how many tokens a prompt has") from None


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(words))


def _body(model: str, text: str, *, n_answer: int, stream: bool) -> dict[str, Any]:
    # a prompt of its own for every request: a cached beginning would flatter the time to the first token
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": n_answer,
                            "temperature": 0, "stream": stream, "ignore_eos": True}  # fmt: skip
    return {**body, "stream_options": {"include_usage": True}} if stream else body


def run_load(
    server: Endpoint, shape: PromptShape, asked: LoadRequest, *, said: Callable[[int], None] | None = None
) -> tuple[tuple[Shot, ...], float]:
    """All requests over at most n_streams connections at once, and the seconds they took. A 429 or 503 is waited out
    as the server says; a request that may have started is never sent again."""
    numbers = itertools.count()
    shots: list[Shot] = []
    lock = threading.Lock()
    n_words = shape.words(asked.n_prompt - _SPARE_TOKENS)

    def work() -> None:
        while (number := next(numbers)) < asked.n_requests:
            text = _text(random.Random(asked.seed * 1_000_003 + number), n_words)
            shot = _shoot(server, _body(shape.model, text, n_answer=asked.n_answer, stream=True))
            with lock:
                shots.append(shot)
            if said:
                said(len(shots))

    started = time.monotonic()
    threads = [threading.Thread(target=work, name=f"stream-{index}", daemon=True) for index in range(asked.n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tuple(shots), time.monotonic() - started


def _shoot(server: Endpoint, body: dict[str, Any]) -> Shot:
    refused = 0
    waited = time.monotonic()
    while True:
        shot, wait_s = _one(server, body)
        if wait_s is None or time.monotonic() - waited > _STREAM_TIMEOUT_S:
            return replace(shot, refused=refused)
        refused += 1
        time.sleep(min(wait_s, _MAX_WAIT_S))


def _one(server: Endpoint, body: dict[str, Any]) -> tuple[Shot, float | None]:
    """(what came of one try, seconds to wait before another where it was not let in)."""
    began = time.perf_counter()
    first: float | None = None
    n_events, usage, error, wait = 0, None, None, None
    try:
        for event in server.stream(_CHAT, body, timeout_s=_STREAM_TIMEOUT_S):
            if isinstance(event, Reply):
                error = f"{event.status}: {event.message()}"
                wait = (event.retry_after_s or 1.0) if event.status in (429, 503) else None
                break
            told = json.loads(event)
            if "error" in told:
                error = str(told["error"].get("message", told["error"]))
                break
            usage = told.get("usage") or usage
            if any(choice.get("delta", {}).get("content") for choice in told.get("choices", ())):
                n_events += 1
                first = time.perf_counter() if first is None else first
    except Broken as broken:
        error = str(broken)
    except (ValueError, AttributeError, TypeError) as bad:
        error = f"an event that is no chunk of a chat completion ({bad})"
    shot = Shot(
        ttft_s=None if first is None else first - began,
        whole_s=time.perf_counter() - began,
        n_prompt=usage.get("prompt_tokens") if usage else None,
        n_answer=int(usage["completion_tokens"]) if usage and usage.get("completion_tokens") else n_events,
        refused=0,
        error=error,
    )
    return shot, wait
