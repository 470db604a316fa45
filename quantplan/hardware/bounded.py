"""A time limit for calls that can hang: a driver library, a file system that is gone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """A call did not come back in time. Its thread is left behind: it holds no lock of ours and ends with us."""


def bounded(call: Callable[[], T], *, timeout_s: float) -> T:
    """What `call` returns or raises, or TookTooLong after `timeout_s` seconds."""
    answer: queue.SimpleQueue[tuple[bool, T | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))

    threading.Thread(target=work, daemon=True, name="quantplan-bounded").start()
    try:
        worked, value = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise TookTooLong from None
    if not worked:
        assert isinstance(value, BaseException)
        raise value
    return value  # type: ignore[return-value]
