"""Runs the units of a build file: a bounded number side by side, each a process of its own, whatever others end like.

Every command is a `quantplan build`, `gate` or `push` that goes on where it was: killed at any moment, the same run
does what is left. Children are killed by the kernel when this process is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any, Protocol

from quantplan.artifact.results import Verdict
from quantplan.llama.process import start_tool, stop_tool
from quantplan.pipeline.fleet_budget import Admission, UnitNeed
from quantplan.pipeline.fleet_commands import Command, How, What, build_command, unit_commands
from quantplan.pipeline.fleet_file import Entry
from quantplan.pipeline.gate import worst

_POLL_S = 0.1
_KEPT = ("HF_TOKEN", "HF_TOKEN_PATH")  # for the hub: tools get none, our own commands do
_JUDGED = (0, 4, 5)  # a build or gate that could judge ends so


class State(Enum):
    """How far a unit is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True, kw_only=True)
class EntryEnd:
    """What became of one entry. `verdict` None: it was not built, and `reason` says why."""

    id: str
    verdict: Verdict | None = None
    reason: str = ""
    bytes: int | None = None
    fresh: bool = False
    gated: bool = False  # by a policy of the build file, beside what the build measured
    pushed: str | None = None
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.verdict is Verdict.PASS and self.error is None


@dataclass(slots=True, kw_only=True)
class Job:
    """A unit while it is worked on."""

    need: UnitNeed
    queue: list[Command]
    log: Path
    state: State = State.WAITING
    command: Command | None = None
    child: Child | None = None
    began: float = 0.0
    seconds: float = 0.0
    why: str = ""  # it waits, or was skipped
    ends: dict[str, EntryEnd] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.need.unit.name

    @property
    def out(self) -> Path:
        return self.log.with_suffix(".json")


class Child(Protocol):
    """A process that was started."""

    def poll(self) -> int | None: ...


class Board(Protocol):
    """Whoever shows how far it is."""

    def show(self, jobs: Sequence[Job]) -> None: ...


Start = Callable[[Sequence[str], IO[bytes], IO[bytes]], Child]
Stop = Callable[[Child], None]


def start_command(argv: Sequence[str], out: IO[bytes], log: IO[bytes]) -> Child:
    """A quantplan of its own, which ends with us."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return start_tool(argv, step="fleet", extra_env=kept, stdout=out, stderr=log, dies_with_us=True)


def stop_command(child: Child) -> None:
    stop_tool(child)  # type: ignore[arg-type]


class FleetRunner:
    """One run. `program` are the words that start quantplan."""

    def __init__(
        self, needs: Sequence[UnitNeed], how: How, *, jobs: int, admission: Admission, program: Sequence[str],
        logs: Path, board: Board, start: Start = start_command, stop: Stop = stop_command,
    ) -> None:  # fmt: skip
        self._how, self._n_jobs, self._admission, self._program = how, jobs, admission, tuple(program)
        self._board, self._start_child, self._stop_child = board, start, stop
        logs.mkdir(parents=True, exist_ok=True)
        self.jobs = [
            Job(need=need, queue=list(unit_commands(need.unit, self._how_of(need))),
                log=logs / f"{need.unit.name}.log")
            for need in needs
        ]  # fmt: skip

    def _how_of(self, need: UnitNeed) -> How:
        how = self._how
        return How(output=how.output, disk=need.mode, threads=how.threads, llama=how.llama, keep=how.keep)

    def run(self) -> Mapping[str, EntryEnd]:
        """What became of every entry. Interrupted, all children are stopped first."""
        try:
            while any(job.state in (State.WAITING, State.RUNNING) for job in self.jobs):
                self._look()
                self._admit()
                self._board.show(self.jobs)
                time.sleep(_POLL_S)
        except BaseException:
            for job in self._running():
                if job.child is not None:
                    self._stop_child(job.child)
            raise
        self._board.show(self.jobs)
        return {name: end for job in self.jobs for name, end in job.ends.items()}

    def _running(self) -> list[Job]:
        return [job for job in self.jobs if job.state is State.RUNNING]

    def _look(self) -> None:
        for job in self._running():
            assert job.child is not None
            status = job.child.poll()
            if status is not None:
                self._ended(job, status)
                self._next(job)

    def _admit(self) -> None:
        """Starts what may start, in the order of the file."""
        for job in self.jobs:
            if job.state is not State.WAITING or self._waits_for_others(job):
                continue
            if len(self._running()) >= self._n_jobs:
                job.why = "all jobs are taken"
                continue
            if any(other.need.unit.lane == job.need.unit.lane for other in self._running()):
                job.why = "the same model is being built"
                continue
            refusal = self._admission.refusal(job.need)
            if refusal is None:
                self._admission.start(job.need)
                job.state, job.began, job.why = State.RUNNING, time.monotonic(), ""
                self._next(job)
            elif not self._running():
                self._give_up(job, State.FAILED, refusal)
            else:
                job.why = refusal

    def _waits_for_others(self, job: Job) -> bool:
        """Whether a need is still to come. One that ended badly ends this too."""
        ends = {name: end for other in self.jobs for name, end in other.ends.items()}
        for name in job.need.unit.needs:
            if name not in ends:
                job.why = f"needs {name}"
                return True
            if not ends[name].good:
                self._give_up(job, State.SKIPPED, f"needs {name}, which was not built or did not pass")
                return True
        return False

    def _give_up(self, job: Job, state: State, why: str) -> None:
        job.state, job.why = state, why
        job.ends = {one.id: EntryEnd(id=one.id, reason=why, error=why) for one in job.need.unit.entries}

    def _next(self, job: Job) -> None:
        """The next command that still makes sense, or the end."""
        while job.queue:
            command = job.queue.pop(0)
            if self._makes_sense(job, command):
                argv = (*self._program, *command.words)
                with job.out.open("wb") as out, job.log.open("ab") as log:
                    log.write(f"$ quantplan {' '.join(command.words)}\n".encode())
                    log.flush()
                    job.command, job.child = command, self._start_child(argv, out, log)
                return
        self._admission.end(job.need)
        job.command = job.child = None
        job.seconds = time.monotonic() - job.began
        job.state = State.FAILED if any(end.error for end in job.ends.values()) else State.DONE

    def _makes_sense(self, job: Job, command: Command) -> bool:
        ends = [job.ends.get(entry.id) for entry in command.entries]
        if command.what is What.GATE:
            return all(end is not None and end.error is None for end in ends)
        if command.what is What.PUSH:
            return all(end is not None and end.good for end in ends)
        if command.what is What.CLEAN:
            lane = [one for one in self.jobs if one.need.unit.lane == job.need.unit.lane]
            is_last = all(one is job or one.state not in (State.WAITING, State.RUNNING) for one in lane)
            return is_last and not any(end.error for one in lane for end in one.ends.values())
        return True

    def _ended(self, job: Job, status: int) -> None:
        command = job.command
        assert command is not None
        told = _document(job.out)
        if command.what is What.BUILD:
            self._built(job, command, status, told)
        elif command.what is not What.CLEAN:
            end = job.ends[command.entries[0].id]
            if command.what is What.GATE and status in _JUDGED:
                result = (told.get("data") or {}).get("result") or {}
                found = Verdict(result.get("verdict", "error"))
                first = end.verdict is Verdict.INCONCLUSIVE and not end.gated  # the gate measures on where it stopped
                if end.verdict is not None and (first or worst([end.verdict, found]) is not end.verdict):
                    end.verdict, end.reason = found, f"{command.words[3]}: {result.get('reason')}"
                end.gated = True
            elif status != 0:
                end.error = f"{command.what.value}: {_why(told, status)}"
            elif command.what is What.PUSH:
                end.pushed = str((told.get("data") or {}).get("repo"))

    def _built(self, job: Job, command: Command, status: int, told: Mapping[str, Any]) -> None:
        """Verdicts by preset. A build of several that failed is taken up preset by preset: one is not to stop all."""
        if status in _JUDGED and told.get("data"):
            found = {str(one["quant"]): one for one in told["data"]["artifacts"]}
            for entry in command.entries:
                job.ends[entry.id] = _end(entry, found[entry.quant])
        elif len(command.entries) > 1:
            how = self._how_of(job.need)
            job.queue[:0] = [build_command((entry,), how) for entry in command.entries]
        else:
            why = _why(told, status)
            job.ends[command.entries[0].id] = EntryEnd(id=command.entries[0].id, reason=why, error=why)


def _end(entry: Entry, told: Mapping[str, Any]) -> EntryEnd:
    return EntryEnd(
        id=entry.id, verdict=Verdict(told["verdict"]), reason=str(told["reason"]), bytes=int(told["file"]["bytes"]),
        fresh=bool(told["fresh"]),
    )  # fmt: skip


def _document(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _why(told: Mapping[str, Any], status: int) -> str:
    error = told.get("error")
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
