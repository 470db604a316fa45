"""A repository of the hub as we know it: its files at one commit."""

from __future__ import annotations

from dataclasses import dataclass

from quantplan.errors import HubFileNotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository. `sha256` is known for large files only."""

    name: str
    n_bytes: int | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository at one commit, by its present name (renamed ones answer under their old name too)."""

    id: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str | None = None
    gated: bool = False

    def file(self, name: str) -> HubFile:
        """Raises HubFileNotFound."""
        for file in self.files:
            if file.name == name:
                return file
        raise HubFileNotFound(repo=self.id, file=name)
