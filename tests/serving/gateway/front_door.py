"""A gateway in front of a llama-server, for as long as a test needs both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.tiny_plan import free_port

from quantplan.artifact.plan_file import Plan, write_plan

PROCESS = Path(__file__).with_name("process.py")
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """A running gateway."""

    url: str
    port: int
    child: subprocess.Popen[bytes]


@contextmanager
def front_door(
    folder: Path, plans: Mapping[str, Plan], *, engine_port: int, engine_key: str | None = None,
    keys: str | None = None, wait_ready: bool = True, **wishes: Any,
) -> Iterator[FrontDoor]:  # fmt: skip
    """The gateway before an engine on that port; `keys` is the text of its key file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, plan in plans.items():
        path = folder / f"{name}.plan.json"
        write_plan(path, plan)
        paths[name] = str(path)
    port = free_port()
    told: dict[str, Any] = {"engine": [engine_port, engine_key], "port": port, "plans": paths, "wishes": wishes}
    if keys is not None:
        file = folder / "keys"
        file.touch(mode=0o600)
        file.write_text(keys)
        told["keys"] = str(file)
    with (folder / "gateway.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, str(PROCESS), json.dumps(told)], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    try:
        _wait(child, f"http://127.0.0.1:{port}{'/readyz' if wait_ready else '/healthz'}", folder / "gateway.log")
        yield FrontDoor(url=f"http://127.0.0.1:{port}", port=port, child=child)
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        if ask(url)[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} was not there in a minute: {log.read_text()}")


def ask(
    url: str, body: Any = None, *, key: str | None = None, timeout_s: float = 60, headers: Mapping[str, str] = {}
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request; status 0 where no answer came."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    told = {"Content-Type": "application/json", **headers}
    if key:
        told["Authorization"] = f"Bearer {key}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, raw, told), timeout=timeout_s) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()
    except OSError:
        return 0, {}, b""


def chat(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}
