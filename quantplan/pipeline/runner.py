"""Follows the schedule: what is settled is proved from the record and the files, and what is not is done.

After every action everything is looked at again. So a build that was cut off anywhere, and one that shares its work
folder with another, go on from what is really there.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import FileEntry
from quantplan.errors import DiskFull
from quantplan.pipeline import scoring
from quantplan.pipeline.convert import convert_step, keep_how_read, source_entries
from quantplan.pipeline.files import remove
from quantplan.pipeline.gate import Scores
from quantplan.pipeline.imatrix import imatrix_step, keep_coverage
from quantplan.pipeline.publish import Publisher
from quantplan.pipeline.quantize import quantize_step, split_step
from quantplan.pipeline.record import Done
from quantplan.pipeline.remote.steps import read_source_step
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import CONVERTED, DIGESTS, IMATRIX, MMPROJ, SOURCE, Action, Kind
from quantplan.pipeline.steps import NEVER, PARTIAL, Step, run_step, stale
from quantplan.pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done about one action of the schedule, and why."""

    action: Action
    runs: bool
    reason: str
    done: Done | None = None


@dataclass(slots=True, kw_only=True)
class _Seen:
    """One action against what is there: settled, or why not. `file` tells whether its own output lies there."""

    action: Action
    why_not: str | None
    file: bool = True
    done: Done | None = None


class BuildRunner:
    """One build in a work folder that is locked for it."""

    def __init__(self, work: Workplace, actions: tuple[Action, ...]) -> None:
        self.work, self.actions = work, actions
        self.publisher = Publisher(work, self)
        self.space = Workspace(work)
        self._entries: dict[str, FileEntry] = {}

    def decide(self) -> tuple[Decision, ...]:
        """Every action, whether it must run, and why or why not."""
        seen = self._survey()
        runs = [one.why_not is not None for one in seen]
        reasons = [one.why_not or self._unchanged(one) for one in seen]
        for at in range(len(seen) - 1, -1, -1):  # from the end: who needs a file comes after who makes it
            one = seen[at]
            if one.action.kind is Kind.DROP:
                runs[at], reasons[at] = self._drop(seen, runs, at)
            elif one.action.kind is Kind.MAKE:
                user = next((seen[i].action.name for i in self._users(seen, at) if runs[i]), None)
                if user is None:
                    runs[at] = False
                    reasons[at] = "all that needs it is done" if one.why_not or not one.file else reasons[at]
                elif one.why_not is None and not one.file:
                    runs[at], reasons[at] = True, f"its output was removed, and {user} needs it"
        return tuple(
            Decision(action=one.action, runs=run, reason=reason, done=one.done)
            for one, run, reason in zip(seen, runs, reasons, strict=True)
        )

    def _users(self, seen: list[_Seen], at: int) -> list[int]:
        made = seen[at].action.makes
        return [i for i, one in enumerate(seen) if one.action.kind is not Kind.DROP and made in one.action.needs]

    def _drop(self, seen: list[_Seen], runs: list[bool], at: int) -> tuple[bool, str]:
        (key,) = seen[at].action.needs
        if not self.space.exists(key):
            return False, "is not there"
        users = [i for i, one in enumerate(seen) if one.action.kind is not Kind.DROP and key in one.action.needs]
        waits = next((seen[i].action.name for i in users if runs[i]), None)
        return True, f"after {waits}" if waits else "nothing later needs it"

    def _unchanged(self, one: _Seen) -> str:
        return f"unchanged since {one.done.at}" if one.done else "done before, and nothing has changed"

    def _survey(self) -> list[_Seen]:
        self._entries = {}
        if self.work.request.imatrix is not None and self.space.exists(IMATRIX):
            self._entries[IMATRIX] = self.work.record.entry(self.work.path(IMATRIX))
        return [self._look(action) for action in self.actions]

    def _look(self, action: Action) -> _Seen:
        if action.kind is Kind.DROP:
            return _Seen(action=action, why_not=None)
        # of SOURCE and DIGESTS the conversion's own inputs tell: it may be done without either being here
        lacking = [key for key in action.needs if key not in (SOURCE, DIGESTS, *self._entries)]
        if action.kind is Kind.MAKE:
            return self._look_at_step(action, lacking)
        if lacking:
            return _Seen(action=action, why_not="after what it needs")
        if action.kind is Kind.COMPARE:
            known = self.scores(action) is not None
            return _Seen(action=action, why_not=None if known else NEVER)
        return _Seen(action=action, why_not=self.publisher.outdated(action))

    def _look_at_step(self, action: Action, lacking: list[str]) -> _Seen:
        assert action.makes is not None
        if lacking:
            known = self.work.record.known(self.work.file_name(action.makes))
            why_not = NEVER if known is None else "what it needs is made anew"
            return _Seen(action=action, why_not=why_not, file=self.space.exists(action.makes))
        step = self._step(action)
        known = self.work.record.known(step.output)
        why = stale(step, known)
        path = self.work.folder / step.output
        there = path.exists() and (known is None or known.is_trusted)
        if why is None and known is not None:
            if there and not self.work.record.intact(path, known.output):
                return _Seen(action=action, why_not="its output was changed on the disk", file=True)
            self._entries[action.makes] = known.output
        return _Seen(action=action, why_not=why, file=there, done=known if why is None else None)

    def _step(self, action: Action) -> Step:
        """The step of an action, with what is known of its inputs now."""
        made, inputs = action.makes, tuple(self._entries[key] for key in action.needs if key in self._entries)
        if made in (CONVERTED, MMPROJ):
            return convert_step(self.work, mmproj=made == MMPROJ, tell=self.space.tell)
        if made == DIGESTS:
            return read_source_step(self.work, inputs=source_entries(self.work), tell=self.space.tell)
        if made == IMATRIX:
            return imatrix_step(self.work, self._entries[CONVERTED])
        assert made is not None
        if made.startswith("logits "):
            return scoring.evaluate_step(self.work, action, inputs[0])
        if made.endswith(" split"):
            return split_step(self.work, made, inputs[0])
        return quantize_step(self.work, made, inputs, imatrix=IMATRIX in action.needs)

    def entry(self, key: str) -> FileEntry:
        """A file of the schedule as the record has it."""
        return self._entries[key]

    def scores(self, action: Action) -> Scores | None:
        """What a comparison gave, where it was made of these very files."""
        told = self.work.record.value(action.name, self._compared(action))
        try:
            return scoring.from_plain(Scores, told) if told is not None else None
        except (TypeError, KeyError, ValueError):
            return None

    def _compared(self, action: Action) -> str:
        return " ".join(self._entries[key].sha256 for key in action.needs)

    def run(self) -> frozenset[str]:
        """Does all that is not settled, in order. Returns the names of what ran."""
        ran: set[str] = set()
        while True:
            decisions = self.decide()
            following = next((one for one in decisions if one.runs), None)
            if following is None:
                return frozenset(ran)
            if following.action.name in ran and following.action.kind is not Kind.DROP:
                raise AssertionError(f"{following.action.name} ran, and is not done: {following.reason}")
            self.space.progress(decisions)
            self._do(following)
            ran.add(following.action.name)

    def _do(self, decision: Decision) -> None:
        action, work = decision.action, self.work
        try:
            if action.kind is Kind.DROP:
                self.space.drop(action.needs[0])
            elif action.kind is Kind.COMPARE:
                work.record.keep(action.name, self._compared(action), scoring.to_plain(scoring.compare(work, action)))
            elif action.kind is Kind.PUBLISH:
                self.publisher.publish(action)
            else:
                self._make(action, decision.reason)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(step=action.name, path=work.folder, free_bytes=0, need_bytes=None) from error
            raise

    def _make(self, action: Action, reason: str) -> None:
        step, work = self._step(action), self.work
        work.tell(step.name, f"running ({reason})")
        if action.makes in (CONVERTED, MMPROJ):
            keep_how_read(work)
        done = run_step(step, folder=work.folder, record=work.record, run=work.run, tell=self.space.tell)
        work.tell(step.name, f"done in {done.entry.seconds:.1f} s")
        if action.makes == IMATRIX:
            keep_coverage(work, done.output)


def remove_leftovers(folder: Path) -> None:
    """What a build that was killed left half-made: nobody else writes here while the lock is held."""
    for path in folder.iterdir():
        if path.name.endswith(PARTIAL) or path.is_symlink():
            remove(path)
