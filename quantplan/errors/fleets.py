"""A build file that cannot be run, and builds of it that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.base import ExitCode, QuantplanError


class BadFleet(QuantplanError):
    """A build file that cannot be read, has a key nobody knows, or contradicts itself."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, path: str | Path, where: str, why: str, near: Sequence[str] = ()) -> None:
        like = f"; near: {', '.join(near)}" if near else ""
        at = f" {where}:" if where else ""
        super().__init__(f"{path}:{at} {why}{like}")
        self.path, self.where, self.why, self.near = str(path), where, why, tuple(near)


class FleetRefused(QuantplanError):
    """Builds of a build file that cannot be made; nothing was begun. `refusals` are (build, error)."""

    def __init__(self, *, path: str | Path, refusals: Sequence[tuple[str, QuantplanError]]) -> None:
        said = "".join(f"\n  {name}: {error}" for name, error in refusals)
        super().__init__(f"{path}: {len(refusals)} build(s) cannot be made, and nothing was begun:{said}")
        self.path, self.refusals = str(path), tuple(refusals)
        self.exit_code = refusals[0][1].exit_code  # type: ignore[misc]


class FleetTooLarge(QuantplanError):
    """More disk or memory than is allowed or there, also with one build after the other."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, path: str | Path, what: str, kind_of: str, need_bytes: int, allowed_bytes: int) -> None:
        need, allowed = -(-need_bytes // 1024**2), allowed_bytes // 1024**2
        super().__init__(f"{path}: {what} needs {need:,} MiB of {kind_of}, and {allowed:,} MiB are allowed and free")
        self.path, self.need_bytes, self.allowed_bytes = str(path), need_bytes, allowed_bytes
