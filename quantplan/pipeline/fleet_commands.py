"""A unit as the commands that make it: the same words here, in a workflow's step and in a Job's container."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from quantplan.pipeline.fleet_file import Entry
from quantplan.pipeline.fleet_order import Unit


class What(Enum):
    """What a command is for."""

    BUILD = "build"
    GATE = "gate"
    PUSH = "push"
    CLEAN = "clean"  # the intermediates, once all that came from them is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Words after `quantplan`, and the entries that they are for."""

    what: What
    words: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What all builds of a run have in common. `disk`: auto | fast | tight."""

    output: str
    disk: str = "auto"
    threads: int | None = None
    llama: str | None = None
    keep: bool = True


def unit_commands(unit: Unit, how: How) -> tuple[Command, ...]:
    """Build, then gate after gate, then what is published, and the intermediates away."""
    return tuple(_commands(unit, how))


def _commands(unit: Unit, how: How) -> Iterator[Command]:
    yield build_command(unit.entries, how)
    for entry in unit.entries:
        for policy in entry.gates:
            words = ("gate", f"{how.output}/{entry.id}", "--policy", policy, *_llama(how), "--json")
            yield Command(what=What.GATE, words=words, entries=(entry,))
    for entry in unit.entries:
        if entry.push:
            yield Command(
                what=What.PUSH, words=("push", f"{how.output}/{entry.id}", entry.push, "--json"), entries=(entry,)
            )
    if not how.keep:
        words = (*build_command(unit.entries, how).words, "--clean")
        yield Command(what=What.CLEAN, words=(*_without(words, "--disk"), "--disk", "tight"), entries=unit.entries)


def build_command(entries: Sequence[Entry], how: How) -> Command:
    """One build of all their presets."""
    first = entries[0]
    quants = [word for entry in entries for word in ("--quant", entry.quant)]
    threads = ("--threads", str(how.threads)) if how.threads else ()
    words = ("build", first.model, *quants, "--output", how.output, *first.options.words(), "--disk", how.disk,
             *threads, *_llama(how), "--json")  # fmt: skip
    return Command(what=What.BUILD, words=words, entries=tuple(entries))


def _llama(how: How) -> tuple[str, ...]:
    return ("--llama", how.llama) if how.llama else ()


def _without(words: Sequence[str], option: str) -> tuple[str, ...]:
    at = words.index(option)
    return (*words[:at], *words[at + 2 :])
