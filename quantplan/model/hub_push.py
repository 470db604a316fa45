"""Writing to the hub, through huggingface_hub: whose token it is, what it may write, and one atomic commit.

Large files go by the LFS protocol over plain HTTP, as downloads do; the chunked protocol (xet) is used only where
HF_HUB_DISABLE_XET=0 asks for it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quantplan import errors
from quantplan.model.hub import known_error

_CONFLICT = (409, 412)
T = TypeVar("T")
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose token it is. `role`: read | write | fineGrained, or None where the hub does not say."""

    name: str
    orgs: tuple[str, ...]
    role: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of a commit: a path on this disk with its sha256, or a text."""

    name: str
    path: Path | None = None
    sha256: str | None = None
    content: bytes = b""


class HubWriter:
    """What we write to the hub. Endpoint and token are huggingface_hub's own."""

    def __init__(self, *, endpoint: str | None = None, token: str | None = None) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if os.environ.get("HF_HUB_DISABLE_XET", "").strip().upper() not in ("0", "OFF", "NO", "FALSE"):
            constants.HF_HUB_DISABLE_XET = True
        if not sys.stderr.isatty():
            disable_progress_bars()
        self._api = HfApi(endpoint=endpoint, token=token)

    def account(self, repo: str) -> Account:
        """Who the token belongs to. Raises HubNoToken, HubTokenRefused or another HubError."""
        from huggingface_hub import get_token

        if not (self._api.token or get_token()):
            raise errors.HubNoToken(repo=repo)
        told = self._ask(self._api.whoami, repo, refused=errors.HubTokenRefused(repo=repo))
        role = (told.get("auth") or {}).get("accessToken") or {}
        orgs = tuple(str(org["name"]) for org in told.get("orgs") or () if isinstance(org, dict) and "name" in org)
        return Account(name=str(told["name"]), orgs=orgs, role=role.get("role"))

    def check_write(self, repo: str) -> None:
        """Raises HubNotWritable where the token may not write to a repository that is there."""
        import inspect

        if "write" not in inspect.signature(self._api.auth_check).parameters:
            return  # an older huggingface_hub: the first upload tells
        refused = errors.HubNotWritable(repo=repo, why="its owner has not given it that right")
        self._ask(lambda: self._api.auth_check(repo, write=True), repo, refused=refused)

    def create(self, repo: str, *, private: bool) -> None:
        """A new repository; one that is there already is left as it is."""
        refused = errors.HubNotWritable(repo=repo, why="it may make no repository of that name")
        self._ask(lambda: self._api.create_repo(repo, private=private, exist_ok=True), repo, refused=refused)

    def create_branch(self, repo: str, branch: str) -> None:
        refused = errors.HubNotWritable(repo=repo, why=f"it may make no branch {branch!r}")
        self._ask(lambda: self._api.create_branch(repo, branch=branch, exist_ok=True), repo, refused=refused)

    def commit(
        self, repo: str, uploads: tuple[Upload, ...], *, revision: str | None, parent: str, message: str, tell: Told
    ) -> str:
        """The new commit: all files or none, on top of `parent`. Large files go first, and count only by the commit.

        Raises HubMoved where the branch is no longer at `parent`, BadArtifact for a file that changed meanwhile.
        """
        from huggingface_hub import CommitOperationAdd

        refused = errors.HubNotWritable(repo=repo, why="the hub refused the upload")
        additions = [
            CommitOperationAdd(
                path_in_repo=one.name, path_or_fileobj=one.content if one.path is None else str(one.path)
            )
            for one in uploads
        ]

        def send() -> str:
            for one, addition in zip(uploads, additions, strict=True):
                if one.path is not None and one.sha256 is not None:
                    tell(f"uploading {one.name}")
                    self._api.preupload_lfs_files(repo, [addition], revision=revision)
                    _check_unchanged(one, addition)
            told = self._api.create_commit(
                repo, additions, commit_message=message, revision=revision, parent_commit=parent
            )
            return str(told.oid)

        return self._ask(send, repo, refused=refused, revision=revision)

    def _ask(
        self, ask: Callable[[], T], repo: str, *, refused: errors.QuantplanError, revision: str | None = None
    ) -> T:
        """The answer, warnings of the client left out; its errors as ours, `refused` for a 401 or 403."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ask()
        except errors.QuantplanError:
            raise
        except Exception as error:
            known = self._known(error, repo, refused, revision)
            if known is None:
                raise
            raise known from error

    def _known(
        self, error: Exception, repo: str, refused: errors.QuantplanError, revision: str | None
    ) -> errors.QuantplanError | None:
        from huggingface_hub.errors import OfflineModeIsEnabled

        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the client's own wrapping of a failed upload
        if isinstance(error, OfflineModeIsEnabled):
            return errors.HubOffline(model=repo)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _CONFLICT:
            return errors.HubMoved(repo=repo)
        if status in (401, 403):
            return refused
        url = f"{self._api.endpoint}/{repo}"
        if type(error) is ValueError:  # the hub's word on a card or on an object
            return errors.HubFailed(url=url, status=400, why=" ".join(str(error).split())[:300])
        return known_error(error, url=url, repo=repo, revision=revision)


def _check_unchanged(one: Upload, addition: Any) -> None:
    """What was sent is what was verified: the client has hashed what it read."""
    found = addition.upload_info.sha256.hex()
    if found != one.sha256:
        raise errors.BadArtifact(
            path=str(one.path), why=f"changed while it was published: sha256 is {found[:16]}…, not {one.sha256}"
        )
