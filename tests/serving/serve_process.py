"""`quantplan serve` in a process of its own, with its document and its events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from serving.tiny_plan import free_port

from quantplan.places import data_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Serve:
    """A running `quantplan serve --json`: its ready document and its events as they come."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    events: list[dict[str, Any]]
    port: int

    def wait_for(self, kind: str, *, seconds: float = 60, after: int = 0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events[after:]:
                if event["kind"] == kind:
                    return event
            time.sleep(0.02)
        raise AssertionError(f"no {kind} in {[event['kind'] for event in self.events]}")

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "quantplan", "serve", *map(str, words)]


def environment(state: Path, **env: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "QUANTPLAN_STATE": str(state), **env}


@contextmanager
def serving(artifact: Path, state: Path, *words: object) -> Iterator[Serve]:
    port = free_port()
    process = subprocess.Popen(
        command(artifact, "--port", port, "--json", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(state),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    if not first:
        pytest.fail(process.stderr.read())
    told = json.loads(first)
    jsonschema.validate(told, json.loads(data_file("schemas", "serve-1.schema.json").read_text()))
    run = Serve(process=process, ready=told["data"], events=[], port=port)
    readers = [threading.Thread(target=_collect, args=(process.stdout, run.events), daemon=True),
               threading.Thread(target=process.stderr.read, daemon=True)]  # fmt: skip
    for reader in readers:
        reader.start()
    try:
        yield run
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            for reader in readers:
                reader.join(timeout=10)
            process.stdout.close()
            process.stderr.close()


def _collect(lines: Any, events: list[dict[str, Any]]) -> None:
    for line in lines:
        told = json.loads(line)
        events.append(told["data"] or {"kind": "error", "text": told["error"]["message"]})
