"""What lies in a work folder, and status.json: how far a build is, for whoever asks from outside."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.pipeline.files import remove
from quantplan.pipeline.lock import holder
from quantplan.pipeline.request import WORK, Workplace
from quantplan.pipeline.schedule import SOURCE, Kind

if TYPE_CHECKING:
    from quantplan.pipeline.runner import Decision

STATUS = "status.json"
SCHEMA = "quantplan/build-status/1"


class Workspace:
    """The files of one build, by their keys of the schedule."""

    def __init__(self, work: Workplace) -> None:
        self._work = work
        self._told: dict[str, Any] = {}

    def exists(self, key: str) -> bool:
        """Whether a file is there; of the source whether its weights are."""
        if key == SOURCE:
            return any(path.suffix == ".safetensors" and path.exists() for path in self._work.request.source.files)
        return self._work.path(key).exists()

    def drop(self, key: str) -> None:
        """Removes a file that nothing later needs. Of the source only what was downloaded for this build."""
        if key != SOURCE:
            remove(self._work.path(key))
        elif self._work.request.source_is_ours:
            for path in self._work.request.source.files:
                if path.suffix == ".safetensors":
                    remove(path)

    def progress(self, decisions: Iterable[Decision]) -> None:
        """Writes status.json: every step, whether it is done, waits or runs."""
        shown = [one for one in decisions if one.action.kind is not Kind.DROP]
        running = next((one.action.name for one in shown if one.runs), None)
        steps = [
            {"name": one.action.name, "state": _state(one, running), "reason": one.reason,
             "seconds": one.done.entry.seconds if one.done else None}
            for one in shown
        ]  # fmt: skip
        self._told = {"schema": SCHEMA, "pid": os.getpid(), "at": time.time(), "steps": steps}
        self._write()

    def tell(self, step: str, what: str) -> None:
        """Passes progress on, and keeps it in status.json."""
        self._work.tell(step, what)
        for one in self._told.get("steps", ()):
            if one["state"] == "running":
                one["progress"] = what
        self._write()

    def _write(self) -> None:
        path = self._work.folder / STATUS
        partial = path.with_name(f".{STATUS}.new")
        with contextlib.suppress(OSError):  # for show only: no step fails for it
            partial.write_text(json.dumps(self._told, indent=1))
            partial.replace(path)


def _state(one: Decision, running: str | None) -> str:
    if not one.runs:
        return "done" if one.done or one.action.kind is not Kind.MAKE else "not needed"
    return "running" if one.action.name == running else "waiting"


def build_status(output: Path) -> tuple[dict[str, Any], ...]:
    """Every build below an output folder: its name, who works on it now (None: nobody), and its steps."""
    found = []
    for path in sorted((output / WORK).glob(f"*/{STATUS}")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            steps = [dict(step) for step in told["steps"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        pid = holder(path.parent)
        for step in steps:
            if pid is None and step["state"] == "running":
                step["state"] = "stopped"
        found.append({"name": path.parent.name, "folder": path.parent, "pid": pid, "steps": steps})
    return tuple(found)
