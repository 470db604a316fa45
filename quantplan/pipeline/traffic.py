"""Bytes as they come: how many, how fast, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from quantplan.units import format_size

_WINDOW_S = 10.0  # the rate is that of the last seconds


class Traffic:
    """Counts bytes from several threads; negative ones turned out to be worth nothing. `total_bytes` None: unknown.

    `tell` gets a short sentence every `every_s` seconds while something comes.
    """

    def __init__(
        self, total_bytes: int | None, *, tell: Callable[[str], None] | None = None, every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.total_bytes, self.n_bytes = total_bytes, 0
        self._tell, self._every_s, self._clock = tell, every_s, clock
        self._seen: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        self._told_at: float | None = None  # counted from the first byte

    def add(self, n_bytes: int) -> None:
        """Some more came."""
        with self._lock:
            now = self._clock()
            self.n_bytes += n_bytes
            self._seen.append((now, n_bytes))
            while self._seen[0][0] < now - _WINDOW_S:
                self._seen.popleft()
            self._told_at = now if self._told_at is None else self._told_at
            if self._tell is not None and now - self._told_at >= self._every_s:
                self._told_at = now
                self._tell(f"{self.share:.0%} read, {self.words()}" if self.total_bytes else f"{self.words()} read")

    @property
    def share(self) -> float:
        """Between 0 and 1; 1 where nothing is to come."""
        return min(1.0, self.n_bytes / self.total_bytes) if self.total_bytes else 1.0

    def words(self) -> str:
        """Bytes, rate and time left."""
        since = max(self._clock() - self._seen[0][0], 0.2) if self._seen else 1.0
        rate = max(0, sum(n for _, n in self._seen)) / since
        left = (self.total_bytes - self.n_bytes) / rate if rate > 0 and self.total_bytes else None
        of = f" of {format_size(self.total_bytes)}" if self.total_bytes is not None else ""
        eta = "" if left is None or left <= 0 else f", {_clock_time(left)} left"
        return f"{format_size(self.n_bytes)}{of}, {format_size(int(rate))}/s{eta}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
