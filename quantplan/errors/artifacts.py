"""Artifacts and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.base import ExitCode, QuantplanError


class BadArtifact(QuantplanError):
    """An artifact that is incomplete, changed since its receipt, or not validated."""

    exit_code = ExitCode.CHECK_FAILED

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = str(path), why


class NotValidated(BadArtifact):
    """An artifact whose newest gate result is no pass, or that has none."""


class NoArtifact(BadArtifact):
    """A path where no artifact is."""

    exit_code = ExitCode.ERROR


class HistoryUnreadable(QuantplanError):
    """A store of results that is damaged, locked or was written by a newer quantplan."""

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: the history {why}")
        self.path, self.why = str(path), why


class NoHistory(QuantplanError):
    """Nothing was recorded of a model."""

    def __init__(self, *, model: str, near: Sequence[str] = ()) -> None:
        like = f"; recorded here: {', '.join(near)}" if near else ""
        super().__init__(f"nothing was recorded of {model!r}{like}")
        self.model, self.near = model, tuple(near)


class DifferentSources(QuantplanError):
    """Artifacts that were not made from one source: their figures say nothing about each other."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, first: str, other: str, why: str) -> None:
        super().__init__(f"{first} and {other} were not made from one source: {why}")
        self.first, self.other, self.why = first, other, why


class UnknownItem(QuantplanError):
    """Nothing of that name is kept here."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str) -> None:
        super().__init__(f"nothing called {name!r} is kept here")
        self.name = name


class StillNeeded(QuantplanError):
    """Something that an artifact links to, or that somebody works on."""

    def __init__(self, *, name: str, needed_by: Sequence[str]) -> None:
        super().__init__(f"{name} is needed by {_few(needed_by)}: it was not deleted")
        self.name, self.needed_by = name, tuple(needed_by)


class NotConfirmed(QuantplanError):
    """A deletion that nobody said yes to."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, what: str) -> None:
        super().__init__(f"{what}: nothing was deleted, since nobody said yes")
        self.what = what


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"
