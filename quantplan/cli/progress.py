"""One bar for a whole download, on stderr: bytes, rate, time left; lines where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from quantplan.units import format_size

_WINDOW_S = 10.0  # the rate is that of the last seconds
_REDRAW_S, _LINE_S = 0.2, 15.0
_WIDTH = 24


class DownloadBar:
    """Counts what comes from several threads. On a terminal one line is drawn over and over."""

    def __init__(self, what: str, *, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._out, self._clock = what, out or sys.stderr, clock
        self._lock = threading.Lock()
        self._total = self._have = 0
        self._drawn_at = float("-inf")
        self._seen: deque[tuple[float, int]] = deque()
        self._is_terminal = self._out.isatty()

    def start(self, n_bytes: int) -> None:
        self._total, self._have, self._drawn_at = n_bytes, 0, self._clock()
        self._seen.clear()
        if n_bytes:
            self._print(f"{self._what}: {format_size(n_bytes)} to fetch")

    def add(self, n_bytes: int) -> None:
        with self._lock:
            now = self._clock()
            self._have += n_bytes
            self._seen.append((now, n_bytes))
            while self._seen and self._seen[0][0] < now - _WINDOW_S:
                self._seen.popleft()
            if now - self._drawn_at >= (_REDRAW_S if self._is_terminal else _LINE_S):
                self._drawn_at = now
                self._draw(now)

    def say(self, text: str) -> None:
        with self._lock:
            self._print(f"{self._what}: {text}")

    def stop(self) -> None:
        with self._lock:
            if self._total and self._is_terminal:
                self._draw(self._clock())
                self._out.write("\n")
            elif self._total:
                self._print(self.line(self._clock()))
            self._out.flush()

    def line(self, now: float) -> str:
        """The state in one line: share, bytes, rate, time left."""
        share = min(1.0, self._have / self._total) if self._total else 1.0
        since = max(now - self._seen[0][0], 0.2) if self._seen else 1.0
        rate = max(0, sum(n for _, n in self._seen)) / since
        left = (self._total - self._have) / rate if rate > 0 else None
        bar = "#" * int(share * _WIDTH)
        eta = "" if left is None or left <= 0 else f", {_clock(left)} left"
        return (
            f"{self._what} [{bar:<{_WIDTH}}] {100 * share:3.0f} % "
            f"{format_size(self._have)} of {format_size(self._total)}, {format_size(int(rate))}/s{eta}"
        )

    def _draw(self, now: float) -> None:
        if self._is_terminal:
            self._out.write(f"\r\x1b[K{self.line(now)}")
            self._out.flush()
        else:
            self._print(self.line(now))

    def _print(self, text: str) -> None:
        self._out.write(("\r\x1b[K" if self._is_terminal else "") + text + "\n")
        self._out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
