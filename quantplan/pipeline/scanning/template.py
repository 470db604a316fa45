"""A chat template as what it is: a stranger's program that writes every prompt. Looked at, then run where it can do
no harm, and held against its source's."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from quantplan import errors
from quantplan.artifact.results import Finding, Severity
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Completed
from quantplan.pipeline.scanning.talks import USER_MARK
from quantplan.pipeline.scanning.template_text import MAX_TEMPLATE, syntax_findings, text_findings
from quantplan.pipeline.scanning.worker import run_worker
from quantplan.units import MIB

CPU_S, WALL_S, MORE_BYTES = 0.5, 1.0, 64 * MIB  # what parsing and rendering may take, whatever the template does
ATTEMPTS = 2
START_S = 20.0  # for Python and Jinja to start on a busy machine, before any of the template is read
SAFE_JINJA = (3, 1, 6)  # earlier ones have known ways out of the sandbox (CVE-2025-27516 and before)
KEY = "tokenizer.chat_template"
INSTALL = "pip install 'quantplan[scan]'"
_WORKER = "quantplan.pipeline.scanning.jinja_worker"
_KILLED = {signal.SIGPROF: "time", signal.SIGALRM: "time", signal.SIGXCPU: "time", signal.SIGKILL: "memory"}
_WHY = {
    "time": ("template-time", f"does not end within {CPU_S} s of computing"),
    "memory": ("template-memory", f"takes more than {MORE_BYTES >> 20} MiB"),
    "recursion": ("template-recursion", "calls itself without end"),
    "output": ("template-output", "writes a prompt without end for a line of a conversation"),
    "overflow": ("template-cost", "makes a number or a text too large"),
    "security": ("template-escape", "was stopped by the sandbox"),
    "crash": ("template-crash", "ends the process that parses it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What a template was found to be and to write. `prompts` is None where it was not rendered."""

    findings: tuple[Finding, ...]
    prompts: Mapping[str, str] | None = None
    failed: bool = False


def scan_template(text: str, *, file: str, where: str, run: Runner = run_tool) -> Rendered:
    """Everything about one template. `where` is the key that holds it; lines are the template's own."""
    place = _Place(file=file, where=where)
    if len(text) > MAX_TEMPLATE:
        told = f"has {len(text):,} characters: not looked into"
        return Rendered(findings=(place.finding("template-size", Severity.ERROR, told),), failed=True)
    found = [place.finding(rule, severity, message, line) for rule, severity, line, message in text_findings(text)]
    lacking = why_no_jinja()
    if lacking is not None:
        found += [place.finding(r, severity, message, line) for r, severity, line, message in syntax_findings(text)]
        found.append(place.finding("template-unrendered", Severity.NOTE, lacking, help=INSTALL))
        return Rendered(findings=_unique(found), failed=True)
    for _ in range(ATTEMPTS):
        told_lines, done = _work(text, run)
        if done is not None and done.returncode != -signal.SIGALRM:
            break  # the clock ended it before its computing time did: the machine's doing, as a rule
    more, prompts = _read(told_lines, done, place)
    found += more
    return Rendered(findings=_unique(found), prompts=prompts, failed=prompts is None)


def why_no_jinja() -> str | None:
    """None where a Jinja is here that may be trusted with a stranger's template."""
    if importlib.util.find_spec("jinja2") is None:
        return "jinja2 is not installed: the template was read, not parsed or rendered"
    version = metadata.version("jinja2")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < SAFE_JINJA:
        return f"jinja2 {version} has known ways out of its sandbox: the template was not rendered"
    return None


def differences(ours: Mapping[str, str], source: Mapping[str, str], *, file: str, where: str, base: str) -> Finding:
    """One finding: in which conversations the prompt is another one than the source's; a note where in none."""
    place = _Place(file=file, where=where)
    both = [name for name in ours if name in source]
    unlike = [name for name in both if ours[name] != source[name]]
    missing = sorted(set(source) - set(ours))
    if not unlike and not missing:
        return place.finding("template-same", Severity.NOTE, f"renders {len(both)} conversations as {base} does")
    if not unlike:
        said = f"does not take {len(missing)} conversation(s) that {base} renders ({', '.join(missing)[:120]})"
        return place.finding("template-differs", Severity.WARNING, said)
    first = unlike[0]
    mine, theirs = _first_difference(ours[first], source[first])
    said = (f"renders {len(unlike)} of {len(both)} conversations otherwise than {base}; "
            f"{first!r}: {mine!r} where the source has {theirs!r}")  # fmt: skip
    return place.finding("template-differs", Severity.WARNING, said, help="use the source's template, or ask why")


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    where: str

    def finding(self, rule: str, severity: Severity, message: str, line: int | None = None,
                help: str | None = None) -> Finding:  # noqa: A002  # fmt: skip
        return Finding(rule=f"scan/{rule}", severity=severity, message=f"{message}", file=self.file, line=line,
                       help=help, where=self.where)  # fmt: skip


def _work(text: str, run: Runner) -> tuple[list[dict[str, Any]], Completed | None]:
    """What the worker told, stage by stage, and how it ended; None where it did not even start in time."""
    job = {"template": text, "render": True, "cpu_s": CPU_S, "wall_s": WALL_S, "more_bytes": MORE_BYTES}
    try:
        done = run_worker(_WORKER, job, step="render", timeout_s=START_S, run=run)
    except errors.ToolFailed:
        return [], None
    told = []
    for line in done.stdout:
        try:
            one = json.loads(line)
        except ValueError:
            continue  # cut off as it was written
        if isinstance(one, dict) and "stage" in one:
            told.append(one)
    return told, done


def _read(told: Sequence[dict[str, Any]], done: Completed | None, place: _Place) -> tuple[
    list[Finding], Mapping[str, str] | None]:  # fmt: skip
    stages = {one["stage"]: one for one in told}
    found: list[Finding] = []
    if done is None:
        busy = "was not rendered: this machine is too busy to start a process"
        return [place.finding("template-unrendered", Severity.WARNING, busy)], None
    if "syntax" in stages:
        why = f"cannot be parsed: {stages['syntax']['why']}"
        return [place.finding("template-syntax", Severity.ERROR, why, stages["syntax"]["line"])], None
    for rule, severity, line, message in stages.get("parsed", {}).get("suspects", ()):
        found.append(place.finding(rule, Severity(severity), message, line))
    for kind, line in _ends(stages, done):
        rule, why = _WHY[kind]
        by_clock = done.returncode == -signal.SIGALRM  # it did not get its time: this may be the machine's fault
        severity = Severity.WARNING if by_clock else Severity.ERROR
        why = f"does not end within {WALL_S:.0f} s" if by_clock else why
        found.append(place.finding(rule, severity, why, line, "do not serve with it: give a template of your own"))
    shown = stages.get("rendered", {}).get("shown")
    if shown is None:
        return found, None
    found += _of_prompts(shown, place)
    for rule, word, line in stages.get("probed", {}).get("changes", ()):
        silent = "once more turns are there" if rule == "template-condition" else "on some days"
        cause = f"once {word!r} is said" if word else silent
        found.append(place.finding(rule, Severity.ERROR, f"adds to the prompt {cause}: {line!r}"))
    return found, {name: one["text"] for name, one in shown.items() if "text" in one}


def _ends(stages: Mapping[str, Any], done: Completed) -> Iterator[tuple[str, int | None]]:
    """(kind, line) of every limit that was met: by the process, by a conversation."""
    if "fell" in stages:
        fell = stages["fell"]
        yield (fell["kind"] if fell["kind"] in _WHY else "crash"), fell["line"]
    elif done.returncode:
        kind = _KILLED.get(signal.Signals(-done.returncode), "crash") if done.returncode < 0 else "crash"
        yield kind, _last_line(done.stderr, stages.get("compiled", {}).get("lines", ()))
    seen = set()
    for one in stages.get("rendered", {}).get("shown", {}).values():
        if one.get("kind") in _WHY and one["kind"] not in seen:
            seen.add(one["kind"])
            yield one["kind"], one["line"]


def _last_line(stderr: Sequence[str], table: Sequence[Sequence[int]]) -> int | None:
    """The template's line that a killed process was in: faulthandler tells that of the code Jinja made of it."""
    for text in stderr:
        if 'File "<template>", line ' in text:
            at = int(text.split("line ")[1].split()[0].rstrip(","))
            return max((line for line, code in table if code <= at), default=None)
    return None


def _of_prompts(shown: Mapping[str, Mapping[str, Any]], place: _Place) -> Iterator[Finding]:
    texts = {name: one["text"] for name, one in shown.items() if "text" in one}
    if not texts:
        first = next(iter(shown.values()))
        if first.get("kind") in ("refused", "fails"):
            why = f"takes no conversation at all: {first['error']}"
            named = place.where.startswith((f"{KEY}.", "chat_template."))  # for tools or documents, not for plain talk
            severity = Severity.NOTE if named else Severity.WARNING
            yield place.finding("template-fails", severity, why, first.get("line"))
        return
    lost = [name for name, text in texts.items() if USER_MARK not in text]
    if lost:
        why = f"leaves out what the user says last ({', '.join(lost)[:120]})"
        yield place.finding("template-drops", Severity.WARNING, why)


def _first_difference(mine: str, theirs: str) -> tuple[str, str]:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    start = max(0, at - 12)
    return mine[start : at + 48], theirs[start : at + 48]


def _unique(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Each rule once a line."""
    return tuple({(one.rule, one.line, one.severity): one for one in reversed(found)}.values())[::-1]
