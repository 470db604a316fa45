"""How far every build of a fleet is: one line each, drawn over on a terminal, else one more line where it changes."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from quantplan.pipeline.fleet_run import Job, State

_TAIL_BYTES = 4096
_REDRAW_S = 0.5
_STEP = re.compile(r"[a-z][\w .+\-]*: .+")


class FleetBoard:
    """Reads the last words of each build's log."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._shown: dict[str, str] = {}
        self._n_drawn, self._drawn_at = 0, 0.0

    def show(self, jobs: Sequence[Job]) -> None:
        now, running = time.monotonic(), any(job.state in (State.RUNNING, State.WAITING) for job in jobs)
        if running and now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        lines = {job.name: line_of(job, now) for job in jobs}
        if self._is_terminal:
            up = f"\x1b[{self._n_drawn}A" if self._n_drawn else ""
            self._out.write(up + "".join(f"\r\x1b[K{line[:160]}\n" for line in lines.values()))
            self._n_drawn = len(lines)
        else:
            for job in jobs:
                told = _without_time(lines[job.name])
                if told != self._shown.get(job.name) and job.state is not State.WAITING:
                    self._shown[job.name] = told
                    self._out.write(f"{lines[job.name]}\n")
        self._out.flush()


def line_of(job: Job, now: float) -> str:
    """Name, state, time, and what it does or waits for."""
    seconds = now - job.began if job.state is State.RUNNING else job.seconds
    took = f"{seconds:6.0f} s" if job.began else " " * 8
    what = {State.RUNNING: _last_words(job), State.WAITING: job.why, State.SKIPPED: job.why}.get(job.state)
    if what is None:
        what = ", ".join(f"{end.id} {end.verdict.value if end.verdict else 'failed'}" for end in job.ends.values())
    return f"{job.name:<28} {job.state.value:<8}{took}  {what}".rstrip()


def _last_words(job: Job) -> str:
    try:
        with job.log.open("rb") as file:
            file.seek(max(0, job.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    own = [line for line in lines if _STEP.fullmatch(line) and not line.startswith(("Warning: ", "Hint: "))]
    return own[-1] if own else (job.command.what.value if job.command else "")


def _without_time(line: str) -> str:
    return re.sub(r"\d+(\.\d+)? s\b|\d+(\.\d+)? %", "", line)
