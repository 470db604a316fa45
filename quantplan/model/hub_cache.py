"""What was read from the hub, once per revision: small files by repository and commit, never a tensor byte."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote


class HubCache:
    """Files under `<folder>/<repository>/<commit>/`. A commit never changes, so neither does what is kept here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, repo: str, commit: str, name: str) -> bytes | None:
        """What was kept, or None."""
        try:
            return self._path(repo, commit, name).read_bytes()
        except OSError:
            return None

    def put(self, repo: str, commit: str, name: str, content: bytes) -> None:
        """Keeps it. A cache that cannot be written is no reason to fail."""
        path = self._path(repo, commit, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(partial).replace(path)
        except OSError:
            return

    def commit_of(self, repo: str, revision: str) -> str | None:
        """The commit that a branch or tag was when it was last asked, for when the hub cannot be asked."""
        kept = self.get(repo, "refs", revision)
        return kept.decode("ascii", "replace") if kept else None

    def put_commit(self, repo: str, revision: str, commit: str) -> None:
        self.put(repo, "refs", revision, commit.encode("ascii"))

    def _path(self, repo: str, commit: str, name: str) -> Path:
        """Every part is one file name: nothing from outside becomes a folder of its own."""
        parts = [quote(part, safe="").replace(".", "%2E") for part in (repo, commit, name)]
        if len(parts[2]) > 200:
            parts[2] = hashlib.sha256(name.encode()).hexdigest()
        return self._folder.joinpath(*parts)
