"""A llama-server started by hand: as planned, or not quite."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.llama import commands
from quantplan.llama.process import clean_environment
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import answers

LOAD_S = 60


def planned_argv(plan: Plan, model: Path, port: int, tools: Toolchain, *, host: str = "127.0.0.1") -> list[str]:
    """The command line that the plan comes to."""
    settings = server_settings(plan, model=model, port=port, host=host)
    return list(commands.server(tools.programs["llama-server"], settings))


def changed(argv: Sequence[str], changes: Mapping[str, str | None], extra: Sequence[str] = ()) -> list[str]:
    """The command line with other values; None takes a flag with its value away."""
    words = list(argv)
    for flag, value in changes.items():
        at = words.index(flag)
        words[at : at + 2] = [] if value is None else [flag, value]
    return [*words, *extra]


@contextmanager
def running(argv: Sequence[str], port: int, *, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The engine, healthy; ended when the block ends."""
    child = subprocess.Popen(
        list(argv), env={**clean_environment(), **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + LOAD_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert child.poll() is None, f"ended with {child.returncode}: {argv}"
            assert time.monotonic() < deadline, "not healthy in time"
            time.sleep(0.05)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
