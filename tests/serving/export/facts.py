"""What a format says, read back from its files: the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantplan.llama import server_flags as flags
from quantplan.serving.export.exported import File


@dataclass(frozen=True, kw_only=True)
class Facts:
    """`settings`: llama-server's, by long name; empty where the format does not start one. Limits are the format's
    own words for them, None where it has none. `hashes`: files whose hash is checked before or after the start."""

    marks: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    memory_max_bytes: int | None = None
    cpus: float | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)


def settings_of(argv: list[str]) -> dict[str, str]:
    """Settings of a command line without its program."""
    return {name: told.value for name, told in flags.from_argv(argv).items()}


def sums(text: str) -> dict[str, str]:
    """What sha256sum is told: path and hash."""
    return {path: digest for digest, path in (line.split("  ", 1) for line in text.splitlines())}


def commented(text: str, mark: str = "#") -> dict[str, str]:
    """Marks in comments."""
    lines = [line.removeprefix(f"{mark} quantplan/") for line in text.splitlines()
             if line.startswith(f"{mark} quantplan/")]  # fmt: skip
    return dict(line.split(": ", 1) for line in lines)


def only(files: tuple[File, ...]) -> str:
    """The text of the one file."""
    assert len(files) == 1
    return files[0].text
