"""A repository of the hub as we know it: its files at one commit."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from quantplan.errors import HubFailed, HubFileNotFound
from quantplan.model.checkpoint import is_safe_name

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository. `sha256` is known for large files only; `blob_id` is git's, sha1 over a plain file."""

    name: str
    n_bytes: int | None
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def digest(self) -> str | None:
        """The hash that the hub tells: sha256 over the content, or of small files git's."""
        return self.sha256 or (self.blob_id if self.blob_id and len(self.blob_id) == 40 else None)

    def hasher(self, n_bytes: int) -> hashlib._Hash | None:
        """A hash of that kind, to be fed with n_bytes of content; None where the hub tells none."""
        if self.sha256:
            return hashlib.sha256()
        if self.digest:
            return hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)  # git's blob object
        return None

    def digest_of(self, content: bytes) -> str | None:
        """The content's hash of that kind; None where the hub tells none."""
        hasher = self.hasher(len(content))
        if hasher is not None:
            hasher.update(content)
        return hasher.hexdigest() if hasher is not None else None

    def is_content(self, content: bytes) -> bool:
        """Whether this is the file's content, as far as the hub tells."""
        return self.digest_of(content) == self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository at one commit, by its present name (renamed ones answer under their old name too)."""

    id: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str | None = None
    gated: bool = False
    base_model: str | None = None  # as its card tells: what this was made from
    unsafe: tuple[str, ...] = ()  # names of files that would leave their folder: never read, only told

    def file(self, name: str) -> HubFile:
        """Raises HubFileNotFound."""
        for file in self.files:
            if file.name == name:
                return file
        raise HubFileNotFound(repo=self.id, file=name)


def repository_of(info: Any, *, asked: str, url: str) -> Repository:
    """What huggingface_hub made of the hub's answer, which it does not check. Raises HubFailed without a commit."""
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise HubFailed(url=url, status=200, why="without a commit")
    names = [s.rfilename for s in info.siblings or () if isinstance(s.rfilename, str)]
    files = (
        HubFile(
            name=s.rfilename,
            n_bytes=s.size if isinstance(s.size, int) else None,
            sha256=str(s.lfs.sha256) if s.lfs else None,
            blob_id=str(s.blob_id) if getattr(s, "blob_id", None) and not s.lfs else None,
        )
        for s in info.siblings or ()
        if isinstance(s.rfilename, str) and is_safe_name(s.rfilename)
    )
    return Repository(
        id=str(info.id or asked),
        commit=commit,
        files=tuple(files),
        licence=_licence(info),
        gated=bool(info.gated),
        base_model=_base_model(info),
        unsafe=tuple(n[:300] for n in names if not is_safe_name(n)),
    )


def _base_model(info: Any) -> str | None:
    """The one model that the card names; None where it names none or several."""
    told = getattr(info.card_data, "base_model", None) if info.card_data else None
    if isinstance(told, list) and len(told) == 1:
        told = told[0]
    return told if isinstance(told, str) and told.count("/") == 1 else None


def _licence(info: Any) -> str | None:
    told = getattr(info.card_data, "license", None) if info.card_data else None
    if isinstance(told, str):
        return told
    tags = (tag[len("license:") :] for tag in info.tags or () if str(tag).startswith("license:"))
    return next(tags, None)
