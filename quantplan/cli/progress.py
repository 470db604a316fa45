"""One bar for a whole download, on stderr: bytes, rate, time left; lines where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from quantplan.pipeline.traffic import Traffic
from quantplan.units import format_size

_REDRAW_S, _LINE_S = 0.2, 15.0
_WIDTH = 24


class DownloadBar:
    """Counts what comes from several threads. On a terminal one line is drawn over and over."""

    def __init__(self, what: str, *, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._out, self._clock = what, out or sys.stderr, clock
        self._lock = threading.Lock()
        self._traffic = Traffic(0, clock=clock)
        self._drawn_at = float("-inf")
        self._is_terminal = self._out.isatty()

    def start(self, n_bytes: int) -> None:
        self._traffic, self._drawn_at = Traffic(n_bytes, clock=self._clock), self._clock()
        if n_bytes:
            self._print(f"{self._what}: {format_size(n_bytes)} to fetch")

    def add(self, n_bytes: int) -> None:
        with self._lock:
            now = self._clock()
            self._traffic.add(n_bytes)
            if now - self._drawn_at >= (_REDRAW_S if self._is_terminal else _LINE_S):
                self._drawn_at = now
                self._draw()

    def say(self, text: str) -> None:
        with self._lock:
            self._print(f"{self._what}: {text}")

    def stop(self) -> None:
        with self._lock:
            if self._traffic.total_bytes and self._is_terminal:
                self._draw()
                self._out.write("\n")
            elif self._traffic.total_bytes:
                self._print(self.line())
            self._out.flush()

    def line(self) -> str:
        """The state in one line: share, bytes, rate, time left."""
        share = self._traffic.share
        bar = "#" * int(share * _WIDTH)
        return f"{self._what} [{bar:<{_WIDTH}}] {100 * share:3.0f} % {self._traffic.words()}"

    def _draw(self) -> None:
        if self._is_terminal:
            self._out.write(f"\r\x1b[K{self.line()}")
            self._out.flush()
        else:
            self._print(self.line())

    def _print(self, text: str) -> None:
        self._out.write(("\r\x1b[K" if self._is_terminal else "") + text + "\n")
        self._out.flush()
