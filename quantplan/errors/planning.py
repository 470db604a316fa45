"""What does not fit, contradicts itself, or is no machine that is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.base import ExitCode, QuantplanError


class DoesNotFit(QuantplanError):
    """A plan needs more than a device has."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, device: str, need_bytes: int, free_bytes: int, what: str = "the plan") -> None:
        need, free = -(-need_bytes // 1024**2), free_bytes // 1024**2
        super().__init__(f"{what} needs {need:,} MiB on {device}, which has {free:,} MiB")
        self.device, self.need_bytes, self.free_bytes = device, need_bytes, free_bytes


class UnknownGpu(QuantplanError):
    """No card of that name in the table."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str, near: Sequence[str] = ()) -> None:
        like = f"; near names: {', '.join(near)}" if near else ""
        super().__init__(f"no GPU called {name!r} is known{like}")
        self.name, self.near = name, tuple(near)


class AmbiguousGpu(QuantplanError):
    """A name that several cards with unlike memory or speed bear."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str, candidates: Sequence[str]) -> None:
        super().__init__(f"{name!r} is several GPUs: {', '.join(candidates)}")
        self.name, self.candidates = name, tuple(candidates)


class BadProfile(QuantplanError):
    """A hardware profile that cannot be read or describes an impossible machine."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, profile: str | Path, where: str, why: str, candidates: Sequence[str] = ()) -> None:
        choose = f"; known here: {', '.join(candidates)}" if candidates else ""
        at = f" {where}:" if where else ""
        super().__init__(f"hardware profile {profile}:{at} {why}{choose}")
        self.profile, self.where, self.why, self.candidates = str(profile), where, why, tuple(candidates)


class HolesFilled(QuantplanError):
    """A filesystem on which a weightless model would take its whole size, on disk or in RAM."""

    def __init__(self, *, path: str | Path, used_bytes: int, probe_bytes: int, when: str) -> None:
        became = f"{used_bytes // 1024**2} of {probe_bytes // 1024**2} MiB of an empty file became real"
        why = "so a model without weights would take its full size there"
        super().__init__(f"{path}: the filesystem fills holes when {when} ({became}), {why}")
        self.path, self.used_bytes, self.when = str(path), used_bytes, when


class CannotExpress(QuantplanError):
    """llama-fit-params has no word for this; a real server start has."""

    def __init__(self, *, what: Sequence[str]) -> None:
        super().__init__(f"llama-fit-params cannot express {', '.join(what)}; only a real server start can answer")
        self.what = tuple(what)


class NothingFits(DoesNotFit):
    """No candidate fits. `changes` are single changes that would make one fit, (what, value), the smallest first;
    `why` is the reason where it is not the memory."""

    def __init__(
        self, *, device: str, need_bytes: int, free_bytes: int, what: str, changes: Sequence[tuple[str, str]],
        why: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(device=device, need_bytes=need_bytes, free_bytes=free_bytes, what=what)
        if why is not None:
            self.args = (why,)
        self.changes, self.why = tuple(changes), why


class Contradiction(QuantplanError):
    """Two constraints that this model and host cannot meet together, though each alone could be."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, first: str, second: str, changes: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(f"{first} and {second} contradict each other on this host: no plan has both")
        self.first, self.second, self.changes = first, second, tuple(changes)
