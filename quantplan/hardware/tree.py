"""Reading /proc, /sys and cgroup files below a root: the running host's `/`, or a folder recorded from another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LARGEST_FILE_BYTES = 4 * 1024**2  # nothing that is read here is near it; a pseudo file never ends


@dataclass(frozen=True, slots=True)
class HostTree:
    """Files of one host. Everything that cannot be read is None: a probe never fails on a missing file."""

    root: Path = Path("/")

    @property
    def live(self) -> bool:
        """Whether this is the machine we run on."""
        return self.root == Path("/")

    def path(self, where: str) -> Path:
        return self.root / where.lstrip("/")

    def text(self, where: str) -> str | None:
        """A file's text, without surrounding blanks."""
        try:
            with self.path(where).open("rb") as file:
                return file.read(_LARGEST_FILE_BYTES).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return None

    def integer(self, where: str) -> int | None:
        """A file that holds one whole number, decimal or 0x…; None for anything else (`max`, an empty file)."""
        text = self.text(where)
        if text is None or not re.fullmatch(r"-?\d+|0[xX][0-9a-fA-F]+", text):
            return None
        return int(text, 0) if text[:2].lower() == "0x" else int(text)

    def exists(self, where: str) -> bool:
        try:
            return self.path(where).exists()
        except OSError:
            return False

    def names(self, where: str, pattern: str = ".*") -> tuple[str, ...]:
        """Names in a folder that match a regular expression whole, in natural order (`cpu2` before `cpu10`)."""
        try:
            found = [entry.name for entry in self.path(where).iterdir() if re.fullmatch(pattern, entry.name)]
        except OSError:
            return ()
        return tuple(sorted(found, key=_natural))

    def pairs(self, where: str) -> dict[str, str]:
        """`key: value`, `key=value` or `key value` lines; the first of equal keys counts."""
        found: dict[str, str] = {}
        for line in (self.text(where) or "").splitlines():
            match = re.match(r"\s*([^:=\s][^:=\t]*?)\s*[:=\t ]\s*(.*)$", line)
            if match:
                found.setdefault(match[1], match[2].strip())
        return found


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name))


def cpu_list(text: str | None) -> tuple[int, ...]:
    """The CPUs of a kernel list such as `0-3,8,10-11`; empty where it is not one."""
    return tuple(_expand(text or ""))


def _expand(text: str) -> Iterator[int]:
    for part in text.replace("\n", "").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match and int(match[2] or match[1]) < 65536:
            yield from range(int(match[1]), int(match[2] or match[1]) + 1)
