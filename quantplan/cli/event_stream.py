"""Events on a stream that nobody may be reading: who writes them never waits for who reads them."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantplan.serving.events import Event

_MOST = 4096


class EventStream:
    """Writes events from a thread of its own; when 4,096 wait unread, further ones are counted and left out."""

    def __init__(self, write: Callable[[Event, float], None]) -> None:
        self._write = write
        self._waiting: queue.Queue[tuple[Any, float] | None] = queue.Queue(_MOST)
        self._open = threading.Event()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        try:
            self._waiting.put_nowait((event, time.time()))
        except queue.Full:
            self._dropped += 1

    def open(self) -> None:
        """Lets events out: they are held back until the server is ready, so that its document comes first."""
        self._open.set()

    def close(self) -> None:
        """Writes what waits, for at most a second."""
        self._open.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout=1)

    def _run(self) -> None:
        from quantplan.serving.events import Event, Kind

        self._open.wait()
        while (item := self._waiting.get()) is not None:
            lost, self._dropped = self._dropped, 0
            try:
                if lost:
                    self._write(Event(kind=Kind.DROPPED, data={"events": lost}), time.time())
                self._write(*item)
            except (OSError, ValueError):  # the reader is gone: serving goes on
                self._write = _nowhere


def _nowhere(_event: Event, _at: float) -> None:
    return None


def write_json(event: Event, at: float) -> None:
    """One line of quantplan/serve-event/1 on stdout."""
    from quantplan.report.document import render, success

    data = {"at": round(at, 3), "kind": event.kind, "slot": event.slot, "task": event.task, "data": event.data,
            "text": event.text or None}  # fmt: skip
    sys.stdout.write(render(success("serve-event", data), one_line=True) + "\n")
    sys.stdout.flush()


def write_text(event: Event, at: float) -> None:
    """One line on stderr: the time, what happened, its numbers or the engine's own words."""
    where = "" if event.slot is None else f" slot {event.slot}"
    numbers = " ".join(f"{key}={value}" for key, value in event.data.items() if not isinstance(value, list))
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    said = event.text if not event.data else numbers
    sys.stderr.write(f"{clock} {event.kind.value}{where} {said}".rstrip() + "\n")
    sys.stderr.flush()
