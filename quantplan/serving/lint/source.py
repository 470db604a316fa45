"""A file as lint sees it: its kind, its lines, the commands it runs and the variables it sets.

What a parser of its format accepts is read by that parser; what none accepts (lost indentation) is read as text.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any


class Kind(Enum):
    """What a file is for."""

    UNIT = "unit"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"
    DOCKERFILE = "dockerfile"
    SHELL = "shell"
    ENV = "env"
    YAML = "yaml"  # of llama-swap, CI …
    PYTHON = "python"
    SCRIPT = "script"  # TypeScript and JavaScript
    SETTINGS = "settings"  # sysctl.conf, preset.ini


_BY_SUFFIX = {
    ".service": Kind.UNIT, ".sh": Kind.SHELL, ".bash": Kind.SHELL, ".env": Kind.ENV, ".py": Kind.PYTHON,
    ".ts": Kind.SCRIPT, ".tsx": Kind.SCRIPT, ".js": Kind.SCRIPT, ".mjs": Kind.SCRIPT, ".conf": Kind.SETTINGS,
    ".ini": Kind.SETTINGS, ".dockerfile": Kind.DOCKERFILE,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command line with the line it starts on; `words` as a shell would split them."""

    line: int
    words: tuple[str, ...]
    text: str

    def program(self, *names: str) -> bool:
        """Whether one of these programs is run, also behind sudo, a path or an interpreter."""
        return any(Path(word).name in names for word in self.words)

    def value(self, *flags: str) -> str | None:
        """The value of the last of these flags, of `--flag value` and `--flag=value` alike; None when absent."""
        found = None
        for index, word in enumerate(self.words):
            name, equals, rest = word.partition("=")
            if name in flags:
                found = rest if equals else self.words[index + 1] if index + 1 < len(self.words) else ""
        return found

    def has(self, *flags: str) -> bool:
        return self.value(*flags) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An environment variable that a file sets."""

    line: int
    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to be checked."""

    path: str
    kind: Kind
    text: str
    documents: tuple[Any, ...] = field(default=())  # YAML as parsed, empty where it is not or cannot be

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(self.text.splitlines())

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The lines with comments blanked, so that line numbers hold."""
        if self.kind in (Kind.PYTHON, Kind.SCRIPT):
            return self.lines
        return tuple("" if line.lstrip().startswith(("#", ";")) else line for line in self.lines)

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        return tuple(_commands(self))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(_settings(self))

    @cached_property
    def lower(self) -> str:
        return self.text.lower()

    @property
    def about_inference(self) -> bool:
        """Whether it concerns this trade at all: other files are left alone."""
        return bool(re.search(r"llama|llm|gguf|ollama|nvidia|vllm", self.lower))

    def line_of(self, pattern: str, *, flags: int = re.IGNORECASE) -> int | None:
        """The first line of code that matches, from 1."""
        for number, line in enumerate(self.code, start=1):
            if re.search(pattern, line, flags):
                return number
        return None


def kind_of(path: Path, text: str) -> Kind | None:
    """What a file is, by its name and else by what it says; None for what lint does not read."""
    name = path.name.removesuffix(".txt")
    lowered = name.lower()
    if lowered.startswith(("dockerfile", "containerfile")):
        return Kind.DOCKERFILE
    if lowered == ".env" or lowered.startswith(".env."):
        return Kind.ENV
    suffix = Path(lowered).suffix
    if suffix in (".yml", ".yaml"):
        return _yaml_kind(text)
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if text.startswith("#!") and re.match(r"#!.*\b(ba|da|z)?sh\b", text):
        return Kind.SHELL
    return None


def _yaml_kind(text: str) -> Kind:
    if re.search(r"^\s*apiVersion:", text, re.MULTILINE) and re.search(r"^\s*kind:", text, re.MULTILINE):
        return Kind.KUBERNETES
    return Kind.COMPOSE if re.search(r"^\s*services:", text, re.MULTILINE) else Kind.YAML


def read_source(path: Path, *, shown: str) -> Source | None:
    """A file as a source; None for what is not text or of no kind that lint knows."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    kind = kind_of(path, text)
    return source_of(shown, kind, text) if kind is not None else None


def source_of(path: str, kind: Kind, text: str) -> Source:
    """A source from its text."""
    documents: tuple[Any, ...] = ()
    if kind in (Kind.COMPOSE, Kind.KUBERNETES, Kind.YAML):
        import yaml

        try:
            documents = tuple(found for found in yaml.safe_load_all(text) if isinstance(found, dict))
        except yaml.YAMLError:
            documents = ()
    return Source(path=path, kind=kind, text=text, documents=documents)


# ---- commands


def _logical(lines: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Lines with their backslash continuations joined, and the number of the first."""
    pending, start = "", 0
    for number, line in enumerate(lines, start=1):
        start = start or number
        stripped = line.rstrip()
        if stripped.endswith("\\"):
            pending += stripped[:-1] + " "
            continue
        yield start, pending + stripped
        pending, start = "", 0
    if pending:
        yield start, pending


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text, comments=True))
    except ValueError:
        return tuple(text.split())


def _commands(source: Source) -> Iterator[Command]:
    if source.kind in (Kind.COMPOSE, Kind.KUBERNETES, Kind.YAML):
        yield from _yaml_commands(source)
        return
    if source.kind in (Kind.PYTHON, Kind.SCRIPT, Kind.ENV, Kind.SETTINGS):
        return
    for line, text in _logical(source.code):
        told = text.strip()
        if source.kind is Kind.UNIT:
            key, _, told = told.partition("=")
            if not key.strip().startswith("Exec"):
                continue
            yield Command(line=line, words=_split(told.lstrip("@-:+!")), text=told)
            continue
        if source.kind is Kind.DOCKERFILE:
            instruction, _, told = told.partition(" ")
            if instruction.upper() not in ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK"):
                continue
            told = told.strip()
            if told.startswith("["):
                yield Command(line=line, words=_exec_form(told), text=told)
                continue
        for part in re.split(r"&&|\|\||;(?!\S)|(?<!\|)\|(?!\|)", told):
            if words := _split(part):
                yield Command(line=line, words=words, text=part.strip())


def _exec_form(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(word) for word in json.loads(text))
    except ValueError:
        return _split(text.strip("[]").replace(",", " "))


def _yaml_commands(source: Source) -> Iterator[Command]:
    """Commands of services and containers; the line is that of the program's name or the first word found."""
    if not source.documents:
        yield from _yaml_text_commands(source)
        return
    for found in _command_values(source.documents):
        words = tuple(str(word) for word in found) if isinstance(found, list) else _split(str(found))
        if words:
            yield Command(line=_line_of_words(source, words), words=words, text=" ".join(words))


def _command_values(node: object) -> Iterator[object]:
    """Every command, args, entrypoint or cmd below; a container's command and args are one command."""
    if isinstance(node, dict):
        parts = [node.get(key) for key in ("entrypoint", "command", "args", "cmd")]
        told = [part for part in parts if isinstance(part, (str, list))]
        if told:
            words: list[str] = [] if node.get("entrypoint") else list(_of_image(str(node.get("image", "")), told))
            for part in told:
                words += [str(word) for word in part] if isinstance(part, list) else list(_split(part))
            yield words
        for value in node.values():
            yield from _command_values(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _command_values(value)


def _of_image(image: str, told: list[Any]) -> tuple[str, ...]:
    """The program that an image starts when only arguments are given."""
    first = str(told[0][0] if isinstance(told[0], list) and told[0] else told[0]).split(" ")[0]
    if first and not first.startswith("-"):
        return ()
    if re.search(r"llama\.cpp:server", image):
        return ("llama-server",)
    return ("vllm", "serve") if "vllm-openai" in image else ()


def _line_of_words(source: Source, words: tuple[str, ...]) -> int:
    for word in words:
        for number, line in enumerate(source.code, start=1):
            if word in line and not re.match(r"\s*-?\s*(image|name)\s*:", line) and len(word) > 2:
                return number
    return 1


def _yaml_text_commands(source: Source) -> Iterator[Command]:
    keys = re.compile(r"^\s*-?\s*(command|args|entrypoint|cmd):\s*(.*)$")
    for index, line in enumerate(source.code):
        found = keys.match(line)
        if not found:
            continue
        told = [] if found[2] in (">", "|", ">-", "|-", "") else [found[2]]
        for following in source.code[index + 1 :]:
            if re.match(r"^\s*[A-Za-z_][\w-]*:(\s|$)", following):
                break
            told.append(re.sub(r"^\s*-\s+(?!-)", "", following).strip())
        words = _split(" ".join(told))
        yield Command(line=index + 1, words=words, text=" ".join(told))


# ---- variables

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(\S*)")


def _settings(source: Source) -> Iterator[Setting]:
    for number, line in enumerate(source.code, start=1):
        told = line.strip()
        if source.kind is Kind.DOCKERFILE:
            found = re.match(r"ENV\s+([A-Za-z_]\w*)(?:=|\s+)(\S*)", told, re.IGNORECASE)
        elif source.kind is Kind.UNIT:
            found = re.match(r"Environment=\"?([A-Za-z_]\w*)=([^\s\"]*)", told)
        elif source.kind in (Kind.COMPOSE, Kind.KUBERNETES, Kind.YAML):
            found = re.match(r"-?\s*\"?([A-Z][A-Z0-9_]+)(?:=|:\s+)\"?([^\"\s]*)", told) or re.match(
                r"-?\s*name:\s*\"?([A-Z][A-Z0-9_]+)\"?()$", told
            )
        elif source.kind in (Kind.ENV, Kind.SHELL):
            found = _ASSIGNED.match(told)
        else:
            found = None
        if found:
            yield Setting(line=number, name=found[1], value=found[2].strip("'\""))
