"""Starting llama-server exactly as planned, and stopping it cleanly."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quantplan.errors import PortInUse, QuantplanError, ServerUnreachable, ToolFailed
from quantplan.llama import commands
from quantplan.llama.process import start_tool, stop_tool
from quantplan.llama.types import Toolchain
from quantplan.serving.runtimes import url_of

_POLL_S = 0.1
_STOP_GRACE_S = 10.0
_LAST_LINES = 12

Say = Callable[[str], None]


class NotReady(QuantplanError):
    """The server started and was not healthy in time."""

    def __init__(self, *, seconds: float, last_lines: tuple[str, ...]) -> None:
        said = "".join(f"\n  | {line}" for line in last_lines)
        super().__init__(f"llama-server was not ready after {seconds:.0f} s{said}")
        self.seconds, self.last_lines = seconds, last_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A healthy server."""

    url: str
    argv: tuple[str, ...]
    child: subprocess.Popen[bytes]
    ready_s: float


def check_port(host: str, port: int) -> None:
    """Raises PortInUse when nothing more can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise PortInUse(host=host, port=port) from None


@contextmanager
def running_server(
    tools: Toolchain, settings: commands.ServerSettings, *, unified_per_slot: bool, log: Say, timeout_s: float = 600.0
) -> Iterator[Running]:
    """A server that answers /health, stopped when the block ends: SIGTERM, then SIGKILL after ten seconds.

    Raises PortInUse, ToolFailed (it died while loading; with its last lines), NotReady.
    """
    check_port(settings.host, settings.port)
    argv = commands.server(tools.programs["llama-server"], settings, unified_per_slot=unified_per_slot)
    started = time.monotonic()
    child = start_tool(argv, step="start llama-server", stderr=subprocess.STDOUT)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    reader = threading.Thread(target=_pass_on, args=(child, last, log), name="server-log", daemon=True)
    reader.start()
    url = url_of(settings.host, settings.port)
    try:
        _wait_healthy(child, url, last, timeout_s=timeout_s)
        yield Running(url=url, argv=argv, child=child, ready_s=time.monotonic() - started)
    finally:
        stop_tool(child, grace_s=_STOP_GRACE_S)
        reader.join(timeout=5)


def _pass_on(child: subprocess.Popen[bytes], last: deque[str], log: Say) -> None:
    assert child.stdout is not None
    with child.stdout as lines:
        for raw in lines:
            line = raw.decode("utf-8", errors="replace").rstrip()
            last.append(line)
            log(line)


def _wait_healthy(child: subprocess.Popen[bytes], url: str, last: deque[str], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = child.poll()
        if status is not None:
            time.sleep(_POLL_S)  # its last lines may still be on their way
            raise ToolFailed(step="start llama-server", argv=("llama-server",), returncode=status,
                             last_lines=tuple(last))  # fmt: skip
        if healthy(url):
            return
        time.sleep(_POLL_S)
    raise NotReady(seconds=timeout_s, last_lines=tuple(last))


def healthy(url: str) -> bool:
    """Whether /health answers 200: 503 while the model loads."""
    return answers(f"{url}/health")


def wait_ready(url: str, *, timeout_s: float) -> None:
    """Returns when a server of any kind says that it is ready. Raises ServerUnreachable."""
    deadline = time.monotonic() + timeout_s
    while not any(answers(url.rstrip("/") + path) for path in ("/health", "/v1/models", "/api/version")):
        if time.monotonic() >= deadline:
            raise ServerUnreachable(url=url, why=f"was not ready within {timeout_s:g} s")
        time.sleep(_POLL_S)


def answers(address: str, *, key: str | None = None) -> bool:
    """Whether an address answers 200 within five seconds."""
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def chat(url: str, message: str, *, max_tokens: int, key: str | None = None, timeout_s: float = 120.0) -> str:
    """One greedy answer through the model's chat template: the plainest proof that the served model answers.

    Raises ToolFailed with the server's words when it refuses.
    """
    told = {"messages": [{"role": "user", "content": message}], "max_tokens": max_tokens, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(told).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", errors="replace")
        raise ToolFailed(step="complete", argv=("llama-server",), returncode=error.code, last_lines=(said,)) from error
