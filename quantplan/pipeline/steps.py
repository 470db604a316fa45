"""A step turns files into one file: written beside its final name, verified, synced, renamed, recorded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import FileEntry, StepEntry
from quantplan.errors import QuantplanError, ToolFailed
from quantplan.llama.process import Runner
from quantplan.pipeline.record import Record

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to run: argv with names relative to the work folder, so that records and receipts carry no local path.

    `shown_argv` is what is recorded (program names without folders); `argv` is what runs. argv names the output
    with the ending `.partial`. `progress` gets the tool's text as it comes and returns a short word for it.
    """

    name: str
    argv: tuple[str, ...]
    shown_argv: tuple[str, ...]
    inputs: tuple[FileEntry, ...]
    output: str
    tool_build: str
    verify: Callable[[Path], None] | None = None
    progress: Callable[[str], str | None] | None = None


def fingerprint(step: Step) -> str:
    """Hash over name, argv, inputs by content, and the build of the tool: another one means another result."""
    told = [step.name, step.shown_argv, [entry.sha256 for entry in step.inputs], step.tool_build]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


Tell = Callable[[str, str], None]  # (step name, what happens)


def run_step(step: Step, *, folder: Path, record: Record, run: Runner, tell: Tell) -> StepEntry:
    """Runs a step unless its record proves that the same has been done and its output is unchanged.

    Raises ToolFailed naming the step; nothing is left under the final name then.
    """
    output = folder / step.output
    known = record.done(fingerprint(step), output)
    if known is not None:
        tell(step.name, "unchanged, skipped")
        return known
    partial = output.with_name(output.name + PARTIAL)
    output.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    tell(step.name, "running")
    try:
        completed = run(step.argv, step=step.name, cwd=folder, on_text=_shown(step, tell))
        if not partial.is_file() or partial.stat().st_size == 0:
            raise ToolFailed(
                step=step.name, argv=step.argv, returncode=completed.returncode,
                last_lines=("no output file was written", *completed.last_lines),
            )  # fmt: skip
        if step.verify:
            step.verify(partial)
        sync(partial)
        partial.replace(output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    entry = StepEntry(
        name=step.name, argv=step.shown_argv, inputs=step.inputs, output=step.output,
        seconds=round(completed.seconds, 3), peak_rss_bytes=completed.peak_rss_bytes,
    )  # fmt: skip
    record.add(fingerprint(step), entry, output)
    tell(step.name, f"done in {completed.seconds:.1f} s")
    return entry


def sync(path: Path) -> None:
    """Makes sure that the file's content is on the disk before its name is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _shown(step: Step, tell: Tell) -> Callable[[str, str], None] | None:
    if step.progress is None:
        return None
    progress, last = step.progress, [""]

    def on_text(_stream: str, text: str) -> None:
        word = progress(text)
        if word and word != last[0]:
            last[0] = word
            tell(step.name, word)

    return on_text


def shown(argv: Sequence[str], *, folder: Path) -> tuple[str, ...]:
    """argv as it may be published: programs and files by name, the work folder left out."""
    prefix = f"{folder}{os.sep}"
    words = []
    for word in argv:
        local = word.removeprefix(prefix)
        words.append(Path(local).name if os.sep in local and Path(local).is_absolute() else local)
    return tuple(words)


def verify_gguf(path: Path) -> None:
    """The header at least: a killed or full-disk llama-quantize leaves zeros where the header belongs."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise NotWhole(path=path)


class NotWhole(QuantplanError):
    """A tool reported success and left a file that is not whole."""

    def __init__(self, *, path: Path) -> None:
        super().__init__(f"{path.name.removesuffix(PARTIAL)}: the tool reported success and left no whole GGUF")
        self.path = str(path)
