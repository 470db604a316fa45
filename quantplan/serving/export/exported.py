"""What an exporter is and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantplan.serving.export.deployment import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of an export; `name` may have a folder before it."""

    name: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The files, and for each setting that the format has no word for: which, and what happens instead."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A word of the output that only newer versions of the target know."""

    version: tuple[int, ...]
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One format. `write` takes all deployments of one export, in the order given: exactly one unless `many`.

    `needs` are the versions of `target` that the output asks for, as a plan makes them necessary.
    """

    target: str
    write: Callable[[tuple[Deployment, ...]], Exported]
    needs: Callable[[Deployment], tuple[Need, ...]] = lambda _: ()
    many: bool = False


def commented(deployment: Deployment, mark: str = "#") -> str:
    """The deployment's marks as comment lines, for formats without a place for them."""
    return "".join(f"{mark} quantplan/{name}: {value}\n" for name, value in deployment.marks.items())
