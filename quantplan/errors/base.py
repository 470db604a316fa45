"""What every error is, and the exit codes."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process answers to the shell."""

    OK = 0
    ERROR = 1  # could not do or measure it
    USAGE = 2
    DOES_NOT_FIT = 3
    CHECK_FAILED = 4  # a check or gate failed
    INCONCLUSIVE = 5


class QuantplanError(Exception):
    """Base of all errors that are part of the interface. `kind` is the class name in JSON."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR

    @property
    def kind(self) -> str:
        return type(self).__name__


class BadValue(QuantplanError):
    """A value that cannot be right, named with the reason."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, what: str, value: object, why: str) -> None:
        super().__init__(f"{what} {value!r} {why}" if value is not None else f"{what} {why}")
        self.what, self.value, self.why = what, value, why


class ExtraMissing(QuantplanError):
    """A Python package of an extra that this needs."""

    def __init__(self, *, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed")
        self.package, self.extra, self.what = package, extra, what
