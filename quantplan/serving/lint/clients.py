"""Servers and clients that people write around an engine: what they promise and do not do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Finding
from quantplan.serving.lint.source import Kind, Source
from quantplan.serving.lint.told import error, note, warning


def python_server(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind is not Kind.PYTHON or not re.search(r"fastapi|flask|starlette|aiohttp", source.lower):
        return
    if not re.search(r"llama|llm|vllm", source.lower):
        return
    routes = source.line_of(r"@\w+\.(post|get|put|route|api_route)\(|add_route|add_api_route|include_router")
    made = source.line_of(r"^\w+\s*=\s*Llama\(")
    if made:
        yield warning(source, "global-llama", made, "one global Llama for all requests: a second one interrupts the running stream",
                      "llama-server --parallel N, or one request at a time behind a lock")  # fmt: skip
    if routes is None and re.search(r"=\s*(FastAPI|Flask|Starlette)\(", source.text):
        yield warning(
            source,
            "no-route",
            source.line_of(r"=\s*(FastAPI|Flask|Starlette)\("),
            "the application has no route",
            "llama-server has them all",
        )
    chat = source.line_of(r"[\"']/v1/chat/completions")
    if routes and chat and (line := source.line_of(r"^\s*prompt\s*:\s*str|\.prompt\b|\[[\"']prompt[\"']\]")):
        yield error(
            source,
            "chat-prompt",
            line,
            "the chat endpoint takes messages, not a prompt",
            "messages: list of role and content",
        )
    if line := source.line_of(r"^\s*context_(limit|length|size)\s*:|\.context_(limit|length|size)\b"):
        yield error(
            source,
            "client-context-limit",
            line,
            "the context limit is read from the request",
            "the limit is the server's: n_ctx of its slots",
        )
    if line := source.line_of(r"len\(\s*[\w.]*(prompt|text|content|message)\w*\s*\)[^\n]*(\*|/{1,2})\s*[34]\b"):
        yield error(
            source,
            "characters-for-tokens",
            line,
            "characters are not tokens",
            "count with the server's tokenizer: POST /tokenize",
        )
    yield from _blocking(source)
    if made is None and (line := source.line_of(r"^(llm|model|llama)\s*=\s*None")) and routes:
        yield warning(source, "global-llama", line, "one global model for all requests: a second one interrupts the running stream",
                      "llama-server --parallel N")  # fmt: skip


def _blocking(source: Source) -> Iterable[Finding]:
    """A model called in an async route holds the event loop for the whole generation."""
    inside = False
    for number, line in enumerate(source.code, start=1):
        if re.match(r"\s*async def ", line):
            inside = True
        elif re.match(r"@|\s*@\w+\.(get|post)|class ", line):
            inside = False
        called = re.search(r"(?<![\w.])(llm|model|llama)(\.create_(chat_)?completion|\.generate)?\(", line)
        if inside and called and not re.search(r"await|to_thread|run_in_threadpool|run_in_executor", line):
            yield error(source, "blocking-in-async", number, "a generation blocks the event loop: no other request is answered meanwhile",
                        "run it in a thread, or proxy llama-server")  # fmt: skip
            return


def script_client(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind is not Kind.SCRIPT or not re.search(r"/v1/(chat/)?completions", source.text):
        return
    fetched = source.line_of(r"\bfetch\(|axios")
    loop = source.line_of(r"\bfor\s*\(.*(attempt|retr|tries)|\bwhile\s*\(.*(attempt|retr|tries)")
    if loop and not re.search(r"\b(429|503)\b|status\s*(>=|<)\s*\d{3}", source.text):
        yield error(
            source,
            "retries-everything",
            loop,
            "it sends a refused request (4xx) again",
            "only 429, 503 and connections that failed before the first token",
        )
    if fetched and not re.search(r"\bsignal\b|AbortController|AbortSignal|timeout", source.text):
        yield warning(
            source,
            "no-timeout",
            fetched,
            "no timeout and no way to stop a generation",
            "signal: AbortSignal.timeout(…)",
        )
    if line := source.line_of(r"\bstream\s*:\s*false\b"):
        yield note(
            source,
            "no-streaming",
            line,
            "the first token is seen when the last one is made",
            "stream: true, and read the events",
        )
    if (
        loop
        and (line := source.line_of(r"\b\d{3,5}\s*\*\s*(attempt|i|n|tries)\b"))
        and "Math.random" not in source.text
    ):
        yield warning(
            source,
            "no-jitter",
            line,
            "waits grow evenly and without jitter: all clients come back together",
            "exponential, times a random share; Retry-After where given",
        )
    if fetched and loop and not re.search(r"tokenize|n_ctx|context|contextLimit", source.text):
        yield note(
            source,
            "no-context-check",
            fetched,
            "nothing checks that the prompt fits the context",
            "POST /tokenize, and compare with the slot's n_ctx",
        )
    if re.search(r"/v1/chat/completions", source.text) and (line := source.line_of(r"^\s*prompt\s*[,:]")):
        yield error(
            source, "chat-prompt", line, "the chat endpoint takes messages, not a prompt", "messages: [{role, content}]"
        )


RULES = (python_server, script_client)
