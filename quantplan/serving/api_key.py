"""The file of API keys: made when it is not there, refused when others may read it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from quantplan.errors import KeyExposed


def protected_key_file(path: Path, *, environ: Mapping[str, str]) -> tuple[Path, bool]:
    """The file, and whether it was made now (one key of 256 bits, mode 0600). Raises KeyExposed.

    systemd lays credentials into a folder that only the service can enter: there the group may read.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        _check(path, environ)
        return path, False
    except OSError as error:
        raise KeyExposed(path=path, why=f"cannot be made ({error.strerror})") from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return path, True


def _check(path: Path, environ: Mapping[str, str]) -> None:
    try:
        mode, owner = path.stat().st_mode, path.stat().st_uid
    except OSError as error:
        raise KeyExposed(path=path, why=f"cannot be read ({error.strerror})") from None
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    private_folder = bool(credentials) and path.resolve().is_relative_to(Path(credentials or "/").resolve())
    exposed = 0o007 if private_folder else 0o077
    if not stat.S_ISREG(mode):
        raise KeyExposed(path=path, why="is no regular file")
    if mode & exposed:
        who = "others" if mode & 0o007 else "its group"
        raise KeyExposed(path=path, why=f"can be read or written by {who} (mode {stat.S_IMODE(mode):04o})")
    if owner not in (0, os.geteuid()):
        raise KeyExposed(path=path, why=f"belongs to another user (uid {owner})")
    if not keys_in(path):
        raise KeyExposed(path=path, why="holds no key")


def keys_in(path: Path) -> tuple[str, ...]:
    """The keys of a file, as llama-server reads them: one a line, `#` begins a comment line. Raises KeyExposed."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyExposed(path=path, why=f"cannot be read as a file of keys ({error})") from None
    return tuple(line for line in lines if line and not line.startswith("#"))
