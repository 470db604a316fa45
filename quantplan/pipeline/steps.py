"""A step turns files into one file: written beside its final name, verified, synced, renamed, recorded."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry, StepEntry
from quantplan.errors import BadModelFile, DiskFull, QuantplanError, ToolFailed
from quantplan.llama.process import Runner
from quantplan.llama.types import Completed
from quantplan.pipeline.files import boot_id, move_into_place, remove, size_of
from quantplan.pipeline.record import Done, Record
from quantplan.pipeline.step_log import StepLog

PARTIAL = ".partial"
NEVER = "never finished here"
NEARLY_FULL_BYTES = 1 << 20

_FULL = ("no space left on device", "disk quota exceeded", "file too large")  # strerror of ENOSPC, EDQUOT, EFBIG

Attempt = Callable[[Path, Runner], Completed]  # (partial output, run): runs the tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to run: argv with names relative to the work folder, so that records and receipts carry no local path.

    `shown_argv` is what is recorded (program names without folders, no thread counts); `argv` is what runs, and
    names the output with the ending `.partial`. `attempt` runs it another way (several times, say). `progress`
    gets the tool's text as it comes and returns a short word for it. `expected_bytes` helps to tell a full disk.
    """

    name: str
    argv: tuple[str, ...]
    shown_argv: tuple[str, ...]
    inputs: tuple[FileEntry, ...]
    output: str
    tool_build: str
    partial: str | None = None  # where the tool cannot write to <output>.partial
    verify: Callable[[Path], None] | None = None
    attempt: Attempt | None = None
    extra_env: Mapping[str, str] | None = None
    progress: Callable[[str], str | None] | None = None
    expected_bytes: int | None = None
    scratch: bool = False  # soon deleted: not worth syncing, and not trusted after a restart of the machine

    @property
    def partial_name(self) -> str:
        return self.partial or self.output + PARTIAL


Tell = Callable[[str, str], None]  # (step name, what happens)


def stale(step: Step, known: Done | None) -> str | None:
    """Why what is recorded does not hold for this step, or None where it does."""
    if known is None:
        return NEVER
    if known.entry.name != step.name or known.entry.argv != step.shown_argv:
        return f"its command has changed{_difference(known.entry.argv, step.shown_argv)}"
    if known.tool_build != step.tool_build:
        return f"its tool has changed: {known.tool_build} → {step.tool_build}"
    before = {entry.name: entry.sha256 for entry in known.entry.inputs}
    now = {entry.name: entry.sha256 for entry in step.inputs}
    if before != now:
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        return f"an input has changed: {', '.join(changed[:3])}"
    return None


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    lost, new = [w for w in before if w not in now], [w for w in now if w not in before]
    return f": {' '.join(lost) or 'nothing'} → {' '.join(new) or 'nothing'}" if lost or new else ""


def run_step(step: Step, *, folder: Path, record: Record, run: Runner, tell: Tell) -> Done:
    """Runs a step and records it. Nothing is left under the final name when it fails.

    Raises DiskFull when that is why it failed, else ToolFailed naming the step, or what `verify` raises.
    """
    output, partial = folder / step.output, folder / step.partial_name
    remove(output)
    remove(partial)
    try:
        with StepLog(folder, step.name, step.shown_argv) as log:
            watched = _noticing(log.watching(run, _shown(step, tell), cwd=folder), step, folder, partial)
            completed = _attempt(step, partial, watched)
            log.end(completed.returncode, completed.seconds, completed.peak_rss_bytes)
        _verify(step, partial, completed)
        boot = boot_id() if step.scratch else None
        move_into_place(partial, output, lasting=boot is None)
    except BaseException as error:
        full = _full_disk(error, step, folder, partial)
        remove(partial)
        if full is not None:
            raise full from error
        raise
    entry = StepEntry(
        name=step.name, argv=step.shown_argv, inputs=step.inputs, output=step.output,
        seconds=round(completed.seconds, 3), peak_rss_bytes=completed.peak_rss_bytes,
    )  # fmt: skip
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    done = Done(entry=entry, tool_build=step.tool_build, output=record.entry(output), at=now, boot=boot)
    record.add(done)
    return done


def _attempt(step: Step, partial: Path, run: Runner) -> Completed:
    if step.attempt is not None:
        return step.attempt(partial, run)
    return run(step.argv, step=step.name, extra_env=step.extra_env)


def _verify(step: Step, partial: Path, completed: Completed) -> None:
    if not partial.exists() or size_of(partial) == 0:
        raise ToolFailed(
            step=step.name, argv=step.argv, returncode=completed.returncode,
            last_lines=("no output file was written", *completed.last_lines),
        )  # fmt: skip
    if step.verify:
        step.verify(partial)


def _noticing(run: Runner, step: Step, folder: Path, partial: Path) -> Runner:
    """`run`, looking at the disk after each tool: llama-perplexity prints a normal result when its disk was full, and
    what tries again would free the space first."""

    def runner(argv: Sequence[str], **options: Any) -> Completed:
        try:
            completed: Completed = run(argv, **options)
        except ToolFailed as error:
            if full := _full_disk(error, step, folder, partial):
                raise full from error
            raise
        short = step.expected_bytes is not None and _written(partial) < step.expected_bytes
        if short and shutil.disk_usage(folder).free < NEARLY_FULL_BYTES:
            raise _disk_full(step, folder, partial)
        return completed

    return runner


def _written(partial: Path) -> int:
    return size_of(partial) if partial.exists() else 0


def _disk_full(step: Step, folder: Path, partial: Path) -> DiskFull:
    free = shutil.disk_usage(folder).free + _written(partial)
    return DiskFull(step=step.name, path=folder, free_bytes=free, need_bytes=step.expected_bytes)


def _full_disk(error: BaseException, step: Step, folder: Path, partial: Path) -> DiskFull | None:
    """The tools do not always say that the disk is full; some report success. So the disk is asked too."""
    if isinstance(error, DiskFull) or not isinstance(error, (QuantplanError, OSError)):
        return None
    said = str(error).lower()
    told = any(words in said for words in _FULL) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    limited = isinstance(error, ToolFailed) and error.returncode == -signal.SIGXFSZ
    full = told or limited or shutil.disk_usage(folder).free < NEARLY_FULL_BYTES
    return _disk_full(step, folder, partial) if full else None


TELL_EVERY_S = 2.0


def _shown(step: Step, tell: Tell) -> Callable[[str, str], None] | None:
    if step.progress is None:
        return None
    progress, last = step.progress, [0.0]

    def on_text(_stream: str, text: str) -> None:
        word = progress(text)
        if word and time.monotonic() - last[0] >= TELL_EVERY_S:
            last[0] = time.monotonic()
            tell(step.name, word)

    return on_text


def shown(argv: Sequence[str], *, folder: Path) -> tuple[str, ...]:
    """argv as it may be published: programs and files by their final names, the work folder left out."""
    prefix = f"{folder}{os.sep}"
    words = []
    for word in argv:
        local = word.removeprefix(prefix).replace(PARTIAL, "")
        words.append(Path(local).name if os.sep in local and Path(local).is_absolute() else local)
    return tuple(words)


def verify_gguf(path: Path) -> None:
    """The header and that every tensor lies inside the file: a killed or full-disk llama-quantize leaves zeros
    where the header belongs, and exits with success in some builds. Raises NotWhole."""
    from quantplan.model.byte_window import FileSource
    from quantplan.model.gguf_header import parse_gguf_header

    try:
        with FileSource(path) as source:
            parse_gguf_header(source)
    except BadModelFile as error:
        raise NotWhole(path=path, why=error.why) from error


class NotWhole(QuantplanError):
    """A tool reported success and left a file that is not whole."""

    def __init__(self, *, path: Path, why: str) -> None:
        super().__init__(f"{path.name.removesuffix(PARTIAL)}: the tool reported success and left no whole GGUF: {why}")
        self.path, self.why = str(path), why
