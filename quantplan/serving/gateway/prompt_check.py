"""Whether a prompt leaves room in its slot, in tokens of the engine's own tokenizer and template."""

from __future__ import annotations

import json
import math
from typing import Any

from quantplan.serving.gateway.asked import Asked, split_prompts
from quantplan.serving.gateway.refusals import too_long
from quantplan.serving.gateway.upstream import Engine, EngineAway, EngineEnded, EngineSilent

_COUNT_TIMEOUT_S = 30.0
# One call that renders and counts (tools/server/server.cpp, b11312); older builds have only the two steps.
_COUNTING = {
    "/v1/chat/completions": "/v1/chat/completions/input_tokens",
    "/v1/responses": "/v1/responses/input_tokens",
    "/v1/messages": "/v1/messages/count_tokens",
}
_COMPLETIONS = ("/v1/completions", "/completion")
# Texts that take the most tokens a byte: single letters and spaces, control characters, scripts and signs that a
# vocabulary lacks, and one that some normalizers write out (U+FDFA).
_PROBES = (
    "a b c d e f g h ", "  \n\t \r\n x", "\x01\x02\x03", "漢字仮名交", "\U0001f9ff\U0001f6f8", "\ufdfa\ufdfa",
    "ẞßðþ", "1 2 3 4 ",
)  # fmt: skip
_LEARNING_TRIES = 3
_SPARE = 2.0  # a template may treat a first or last message unlike those tried


class PromptCheck:
    """Checks prompts of one model. Before `learn` has asked the engine, every prompt is counted exactly."""

    def __init__(self, engine: Engine, *, model: str, n_ctx: int) -> None:
        self._engine, self._model, self._n_ctx = engine, model, n_ctx
        self._tries = _LEARNING_TRIES
        self._per_byte: float | None = None
        self._base = self._per_message = 0.0

    @property
    def learned(self) -> bool:
        """Whether there is nothing more to ask: the bound is known, or the engine did not tell when it was asked."""
        return self._tries <= 0

    async def learn(self) -> None:
        """Asks the engine for the tokens of a few texts and messages: from them a bound that needs no tokenizer."""
        self._tries -= 1
        shares = []
        for text in _PROBES:
            n_tokens = await self._tokenize(text)
            if n_tokens is None:
                return
            shares.append((n_tokens - 1) / len(text.encode()))  # one is the beginning of the text
        one, three = await self._chat_tokens(1), await self._chat_tokens(3)
        if one is not None and three is not None:
            self._base, self._per_message = _SPARE * one, _SPARE * max(1.0, (three - one) / 2)
            self._per_byte = max(1.0, *shares)
            self._tries = 0

    def bound(self, asked: Asked) -> int | None:
        """Tokens the prompt has at most, None where only the engine can say."""
        if asked.text_bytes is None or self._per_byte is None:
            return None
        from_text = self._base + self._per_message * asked.n_messages + self._per_byte * asked.text_bytes
        return max(math.ceil(from_text), asked.n_tokens)

    async def check(self, asked: Asked) -> str:
        """How it was found to fit: `bound`, `exact`, or `unknown` where the engine must say. Raises Refusal."""
        bound = self.bound(asked)
        if bound is not None and bound < self._n_ctx:
            return "bound"
        counted = await self.count(asked)
        if counted is None:
            return "unknown"
        if counted >= self._n_ctx:
            raise too_long(n_prompt=counted, n_ctx=self._n_ctx)
        return "exact"

    async def count(self, asked: Asked) -> int | None:
        """A prompt's tokens, as the engine counts them; of several the longest. None where it does not say."""
        if asked.path in _COMPLETIONS:
            return await self._count_prompts(asked)
        route = _COUNTING.get(asked.path)
        if route is None:
            return None
        told = await self._ask(route, {**asked.body, "model": self._model, "stream": False})
        if told is not None and isinstance(told.get("input_tokens"), int):
            return int(told["input_tokens"])
        if asked.path != "/v1/chat/completions":
            return None
        rendered = await self._ask("/apply-template", {**asked.body, "model": self._model})
        return await self._tokenize(rendered["prompt"]) if rendered and "prompt" in rendered else None

    async def _count_prompts(self, asked: Asked) -> int | None:
        counts = [asked.n_tokens]
        for prompt in split_prompts(asked.body.get("prompt")) or ():
            if isinstance(prompt, str):
                counted = await self._tokenize(prompt)
                if counted is None:
                    return None
                counts.append(counted)
        return max(counts)

    async def _chat_tokens(self, n_messages: int) -> int | None:
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": "a"} for index in range(n_messages)]
        told = await self._ask(_COUNTING["/v1/chat/completions"], {"messages": messages, "model": self._model})
        found = (told or {}).get("input_tokens")
        return found if isinstance(found, int) else None

    async def _tokenize(self, text: str) -> int | None:
        body = {"content": text, "add_special": True, "parse_special": True, "model": self._model}
        told = await self._ask("/tokenize", body)
        return len(told["tokens"]) if told and isinstance(told.get("tokens"), list) else None

    async def _ask(self, path: str, body: Any) -> dict[str, Any] | None:
        """The engine's answer, None where it has none to give; a generation then finds out itself."""
        try:
            status, raw = await self._engine.ask("POST", path, json.dumps(body).encode(), timeout_s=_COUNT_TIMEOUT_S)
            told = json.loads(raw) if status == 200 else None
        except (EngineAway, EngineEnded, EngineSilent, ValueError):
            return None
        return told if isinstance(told, dict) else None
