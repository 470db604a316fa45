"""A model that is not there, cannot be read, or is of no known kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.base import ExitCode, QuantplanError


class UnknownModel(QuantplanError):
    """No file, folder, catalog entry or repository of that name."""

    def __init__(self, *, model: str, near: Sequence[str] = ()) -> None:
        like = f"; near names: {', '.join(near)}" if near else ""
        super().__init__(f"no model called {model!r}: not a file, not a folder, not a catalog id{like}")
        self.model, self.near = model, tuple(near)


class NotInCatalog(UnknownModel):
    """No catalog model of that name, and the hub could not be asked about it."""

    def __init__(self, *, model: str, near: Sequence[str], why: str) -> None:
        super().__init__(model=model, near=near)
        self.args = (f"no model called {model!r} in the catalog; near names: {', '.join(near)} (hub: {why})",)
        self.why = why


class ChooseFile(QuantplanError):
    """Several files of a repository or folder would do: one must be named."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, model: str, asked: str | None, choices: Sequence[str]) -> None:
        what = f"{asked!r} matches" if asked else "it has"
        super().__init__(f"{model}: {what} {len(choices)} models: {', '.join(choices)}")
        self.model, self.asked, self.choices = model, asked, tuple(choices)


class BadModelFile(QuantplanError):
    """A model file or folder that cannot be what it claims to be. `rule` is which rule of its format it breaks, as a
    scan names it (docs/scan.md); `where` the key or tensor."""

    def __init__(
        self, *, path: str | Path, why: str, offset: int | None = None, rule: str | None = None,
        where: str | None = None,
    ) -> None:  # fmt: skip
        at = f" (at byte {offset})" if offset is not None else ""
        super().__init__(f"{path}: {why}{at}")
        self.path, self.why, self.offset, self.rule, self.where = str(path), why, offset, rule, where


class UnsupportedArchitecture(QuantplanError):
    """An architecture that neither the tables nor the pinned converter know."""

    def __init__(self, *, architecture: str, path: str | Path, supported: Sequence[str] = ()) -> None:
        super().__init__(f"{path}: architecture {architecture!r} is not supported by the pinned llama.cpp")
        self.architecture, self.path, self.supported = architecture, str(path), tuple(supported)


class BadConfig(QuantplanError):
    """A config.json that lacks what its architecture needs, or has it in a form that cannot be right."""

    def __init__(self, *, key: str, why: str) -> None:
        super().__init__(f"config.json: {key} {why}")
        self.key, self.why = key, why


class UnsupportedQuantization(QuantplanError):
    """A checkpoint in a quantization that the pinned converter does not read."""

    def __init__(self, *, method: str, why: str = "") -> None:
        told = f": {why}" if why else ""
        super().__init__(f"the pinned converter does not read checkpoints quantized with {method}{told}")
        self.method, self.why = method, why
