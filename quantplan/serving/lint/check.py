"""Checking files and folders, and mending what is safe to mend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import write_atomically
from quantplan.artifact.results import Finding, Severity
from quantplan.errors import BadValue
from quantplan.serving.lint import clients, commands, deployments
from quantplan.serving.lint.source import Kind, Source, read_source, source_of
from quantplan.serving.lint.texts import sayings
from quantplan.serving.lint.told import Rule

RULES: tuple[Rule, ...] = (sayings, *commands.RULES, *deployments.RULES, *clients.RULES)
_LEFT_OUT = frozenset({".git", "node_modules", ".venv", "__pycache__", "site-packages"})
_WORST_FIRST = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Linted:
    """What was read, and what was found there in the order of files and lines."""

    n_files: int
    findings: tuple[Finding, ...]
    fixed: tuple[str, ...] = ()


def lint_paths(paths: Sequence[Path], *, plan: Plan | None = None, fix: bool = False) -> Linted:
    """Every file of a kind that lint knows, under these paths. With `fix`, what is safe is mended first. Raises
    BadValue for a path that is not there and a named file that cannot be read."""
    findings: list[Finding] = []
    fixed: list[str] = []
    sources = [found for path in paths for found in _sources(path)]
    for path, source in sources:
        text = mend(source) if fix else source.text
        if text != source.text:
            write_atomically(path, text)
            fixed.append(source.path)
        findings += lint_source(source_of(source.path, source.kind, text), plan=plan)
    return Linted(n_files=len(sources), findings=tuple(findings), fixed=tuple(fixed))


def lint_source(source: Source, *, plan: Plan | None = None) -> tuple[Finding, ...]:
    """One file against every rule, each thing once, by line and then the worst first."""
    found = dict.fromkeys(finding for rule in RULES for finding in rule(source, plan))
    return tuple(sorted(found, key=lambda f: (f.line or 0, _WORST_FIRST[f.severity], f.rule)))


def _sources(path: Path) -> Iterable[tuple[Path, Source]]:
    if not path.exists():
        raise BadValue(what="file", value=str(path), why="is not there")
    if path.is_file():
        source = read_source(path, shown=str(path))
        if source is None:
            raise BadValue(
                what="file",
                value=str(path),
                why="is no unit, compose file, manifest, Dockerfile, script, .env or client",
            )
        yield path, source
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not _LEFT_OUT & set(file.relative_to(path).parts):
            source = read_source(file, shown=str(file))
            if source is not None:
                yield file, source


# ---- mending

_SAFE = (
    (r"(github\.com|ghcr\.io)([/:])ggerganov/(llama\.cpp|ggml)", r"\1\2ggml-org/\3"),
    (r"\bhuggingface-cli (download|upload|auth|cache|scan-cache)\b", r"hf \1"),
    (r"-DLLAMA_(CUDA|CUBLAS)=", "-DGGML_CUDA="),
)
_DROPPED = (r"--resume-download",)


def mend(source: Source) -> str:
    """The text with what is safe mended: renamed things renamed, flags and settings that do nothing left out, a
    published port bound to loopback. Mending twice changes nothing more."""
    text = source.text
    if source.kind in (Kind.PYTHON, Kind.SCRIPT):
        return text
    for pattern, instead in _SAFE:
        text = re.sub(pattern, instead, text)
    for flag in _DROPPED:
        text = _without_flag(text, flag)
    text = _without_lines(source.kind, text)
    if source.kind is Kind.COMPOSE and source.about_inference:
        text = re.sub(r"^(version\s*:.*\n)", "", text, count=1, flags=re.MULTILINE)
        text = re.sub(r"^(\s*-\s*)([\"']?)(?:0\.0\.0\.0:)?(\d{2,5}:\d{2,5}(?:/tcp)?)([\"']?)(\s*)$",
                      lambda m: f'{m[1]}{m[2] or chr(34)}127.0.0.1:{m[3]}{m[4] or chr(34)}{m[5]}', text, flags=re.MULTILINE)  # fmt: skip
    return text


def _without_flag(text: str, flag: str) -> str:
    """A flag without value removed; on a line of its own with the line, and the backslash before it if it was last."""
    text = re.sub(rf"^[ \t]*{flag}[ \t]*\\\n", "", text, flags=re.MULTILINE)
    text = re.sub(rf"[ \t]*\\\n[ \t]*{flag}[ \t]*$", "", text, flags=re.MULTILINE)
    return re.sub(rf"[ \t]+{flag}(?=\s|$)", "", text)


def _without_lines(kind: Kind, text: str) -> str:
    """Settings that do nothing, where a line sets nothing else."""
    names = r"(HF_HUB_ENABLE_HF_TRANSFER)"
    if kind is Kind.ENV:
        return re.sub(rf"^\s*(export\s+)?{names}=\S*[ \t]*\n", "", text, flags=re.MULTILINE)
    if kind is Kind.SHELL:
        return re.sub(rf"^\s*export\s+{names}=\S*[ \t]*\n", "", text, flags=re.MULTILINE)
    if kind is Kind.UNIT:
        return re.sub(rf"^Environment=\"?{names}=\S*\n", "", text, flags=re.MULTILINE)
    if kind is Kind.DOCKERFILE:
        return re.sub(r"^ENV\s+(HF_HUB_ENABLE_HF_TRANSFER|LLAMA_CUDA)(=|\s)\S*[ \t]*\n", "", text, flags=re.MULTILINE)
    return text
