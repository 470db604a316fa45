"""What keeps a server from starting, or a client from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.base import ExitCode, QuantplanError
from quantplan.errors.planning import DoesNotFit


class PortInUse(QuantplanError):
    """The address a server was asked to listen on is taken."""

    def __init__(self, *, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is already in use")
        self.host, self.port = host, port


class NotEnoughNow(DoesNotFit):
    """Less memory is free now than the plan needs. `holders` are (pid, name, bytes) of those who have it."""

    def __init__(
        self, *, device: str, need_bytes: int, free_bytes: int, holders: Sequence[tuple[int, str, int]]
    ) -> None:
        super().__init__(device=device, need_bytes=need_bytes, free_bytes=free_bytes)
        who = ", ".join(f"{name} (pid {pid}) {held // 1024**2:,} MiB" for pid, name, held in holders)
        self.args = (f"{self.args[0]} free now{f'; held by {who}' if who else ''}",)
        self.holders = tuple(holders)


class OtherHost(QuantplanError):
    """A plan that was made for another machine. `reasons` say what is not as planned, as far as that can be told."""

    exit_code = ExitCode.CHECK_FAILED

    def __init__(self, *, planned: str, found: str, reasons: Sequence[str]) -> None:
        why = f": {'; '.join(reasons)}" if reasons else ""
        other = f"was made for another machine ({planned}, this is {found})"
        super().__init__(f"the plan {'cannot be kept on this machine' if planned == found else other}{why}")
        self.planned, self.found, self.reasons = planned, found, tuple(reasons)


class KeyExposed(QuantplanError):
    """A file of API keys that others may read or write, or that holds none."""

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = str(path), why


class PublicWithoutKey(QuantplanError):
    """A server that everybody on the network could use."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, host: str, lacks: str) -> None:
        super().__init__(f"{host} is reachable from other machines, and {lacks}")
        self.host, self.lacks = host, lacks


class KeepsCrashing(QuantplanError):
    """An engine that was started again and again, and ended each time."""

    def __init__(self, *, times: int, seconds: float, status: int | None, last_lines: Sequence[str]) -> None:
        said = "".join(f"\n  | {line}" for line in last_lines)
        super().__init__(f"the engine ended {times} times in {seconds:.0f} s, last with status {status}{said}")
        self.times, self.status, self.last_lines = times, status, tuple(last_lines)


class ServerUnreachable(QuantplanError):
    """Nobody answers at an address, or not as a model server does."""

    def __init__(self, *, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url, self.why = url, why


class BadKeyFile(QuantplanError):
    """A file of API keys that is unsafe or cannot be read. Never quotes its text."""

    def __init__(self, *, path: str | Path, why: str, others: bool = False) -> None:
        super().__init__(f"key file {path}: {why}")
        self.path, self.why, self.others = str(path), why, others


class BadJob(QuantplanError):
    """A file of requests with a line that is none; nothing was sent."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, path: str | Path, line: int | None, why: str) -> None:
        at = f", line {line}" if line is not None else ""
        super().__init__(f"{path}{at}: {why}")
        self.path, self.line, self.why = str(path), line, why
