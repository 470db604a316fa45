"""The key file: one key a line, each with what it may have."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadKeyFile

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NUMBERS = ("in_flight", "requests_per_minute", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Who a key stands for, in metrics and logs, and its own limits; None is the model's."""

    name: str
    in_flight: int | None = None
    requests_per_minute: int | None = None
    max_tokens: int | None = None


ANYONE = Key(name="anyone")


def digest(key: str) -> bytes:
    """What keys are kept and looked up by: the time of a look-up says nothing about a key."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> dict[bytes, Key]:
    """Keys by digest, from lines of `KEY [name=…] [in_flight=N] [requests_per_minute=N] [max_tokens=N]`; # comments.

    Raises BadKeyFile: missing, readable by others, empty, or a line that is wrong (its number, never its text).
    """
    try:
        if path.stat().st_mode & _OTHERS:
            raise BadKeyFile(path=path, why="can be read by others than its owner", others=True)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeyFile(path=path, why=getattr(error, "strerror", None) or "is not UTF-8 text") from None
    found: dict[bytes, Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if words:
            found[digest(words[0])] = _key(words, path, number)
    if not found:
        raise BadKeyFile(path=path, why="holds no key")
    return found


def _key(words: list[str], path: Path, number: int) -> Key:
    told: dict[str, str] = {}
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name not in ("name", *_NUMBERS) or not value:
            raise BadKeyFile(path=path, why=f"line {number}: write name=…, {'=N, '.join(_NUMBERS)}=N after the key")
        told[name] = value
    numbers: dict[str, int] = {}
    for name in _NUMBERS:
        if name in told:
            if not told[name].isdecimal() or int(told[name]) < 1:
                raise BadKeyFile(path=path, why=f"line {number}: {name} must be a whole number of at least 1")
            numbers[name] = int(told[name])
    return Key(name=told.get("name", f"key-{digest(words[0]).hex()[:6]}"), **numbers)


def find_key(keys: Mapping[bytes, Key], headers: Mapping[bytes, bytes]) -> Key | None:
    """The key a request came with (Authorization: Bearer, or X-Api-Key), or None when it is wrong."""
    if not keys:
        return ANYONE
    given = headers.get(b"authorization", b"") or headers.get(b"x-api-key", b"")
    return keys.get(digest(given.decode("latin-1").removeprefix("Bearer ").strip()))
