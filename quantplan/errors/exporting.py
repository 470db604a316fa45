"""What cannot be taken to a launcher."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.errors.base import ExitCode, QuantplanError


class UnknownFormat(QuantplanError):
    """An export format that does not exist."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no export format {name!r}; there are: {', '.join(known)}")
        self.name, self.known = name, tuple(known)


class TargetTooOld(QuantplanError):
    """A launcher that has no word yet for what the plan needs."""

    def __init__(self, *, target: str, version: str, needed: str, what: str) -> None:
        super().__init__(f"{target} {version} is too old: {what} needs {needed}")
        self.target, self.version, self.needed, self.what = target, version, needed, what


class CannotExport(QuantplanError):
    """A deployment that a format has no way to say, where leaving a part out would not be the plan any more."""

    def __init__(self, *, target: str, why: str, instead: str | None = None) -> None:
        super().__init__(f"{target} cannot run this plan: {why}")
        self.target, self.why, self.instead = target, why, instead


class SeveralFiles(QuantplanError):
    """An export of more files than one, asked for on standard output."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, target: str, names: Sequence[str]) -> None:
        super().__init__(f"an export for {target} is {len(names)} files: {', '.join(names)}")
        self.target, self.names = target, tuple(names)
