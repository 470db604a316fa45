"""What a gate cannot judge."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.errors.base import ExitCode, QuantplanError


class BadPolicy(QuantplanError):
    """A policy that cannot be read, has a key nobody knows, or a limit that nothing can meet."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, policy: str, key: str | None, why: str, near: Sequence[str] = ()) -> None:
        like = f"; near: {', '.join(near)}" if near else ""
        at = f" {key}:" if key else ""
        super().__init__(f"policy {policy}:{at} {why}{like}")
        self.policy, self.key, self.why, self.near = policy, key, why, tuple(near)


class NotComparable(QuantplanError):
    """A reference and an artifact that are not of one model: no measurement of the one against the other has a
    meaning."""

    def __init__(self, *, artifact: str, reference: str, why: str) -> None:
        super().__init__(f"{artifact} cannot be measured against {reference}: {why}")
        self.artifact, self.reference, self.why = artifact, reference, why


class DamagedWeights(QuantplanError):
    """Weights with scales or values that are not finite: refused before anything is measured."""

    def __init__(self, *, path: str, tensors: Sequence[str]) -> None:
        shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        super().__init__(f"{path}: values that are not finite in {shown}")
        self.path, self.tensors = path, tuple(tensors)


class NoReference(QuantplanError):
    """Nothing to measure an artifact against."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, artifact: str, why: str) -> None:
        super().__init__(f"{artifact}: no 16-bit reference to measure against ({why})")
        self.artifact, self.why = artifact, why


class BadText(QuantplanError):
    """A text that cannot be read as UTF-8, or holds nothing."""

    def __init__(self, *, text: str, why: str) -> None:
        super().__init__(f"text {text}: {why}")
        self.text, self.why = text, why
