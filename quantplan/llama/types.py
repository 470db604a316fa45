"""What the tools are and what a run of one returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

TOOLS = (
    "llama-quantize",
    "llama-perplexity",
    "llama-server",
    "llama-bench",
    "llama-imatrix",
    "llama-fit-params",
    "llama-gguf-split",
    "llama-tokenize",
)
# What `build` and `serve` cannot do without; the others are asked for when they are needed.
REQUIRED_TOOLS = ("llama-quantize", "llama-perplexity", "llama-server")


class Origin(Enum):
    """Where the tools were found."""

    OPTION = "option"
    ENVIRONMENT = "environment"
    PATH = "path"
    MANAGED = "managed"  # built by `toolchain install`


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What the tools say of themselves. A depth-1 checkout reports number 1, so only the commit counts then."""

    version: str | None
    number: int | None
    commit: str | None

    @property
    def label(self) -> str:
        number = f"b{self.number}" if self.number and self.number > 1000 else None
        return "-".join(part for part in (number, self.commit) if part) or (self.version or "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine of a result, as the JSON contract names it."""

    tool: str
    version: str | None
    commit: str | None
    sdist_sha256: str | None
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One set of llama.cpp tools. `programs` maps a tool's name to the argv that starts it."""

    origin: Origin
    folder: Path
    programs: Mapping[str, tuple[str, ...]]
    build: BuildInfo
    sdist_sha256: str | None = None
    options: tuple[str, ...] = ()
    backend: str = "cpu"  # cpu | cuda | unknown
    library_folder: Path | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(tool for tool in TOOLS if tool not in self.programs)

    def engine(self, tool: str = "llama.cpp") -> Engine:
        """What goes into a document's `engine`."""
        return Engine(
            tool=tool,
            version=self.build.label,
            commit=self.build.commit,
            sdist_sha256=self.sdist_sha256,
            options=self.options,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """One finished run: what it printed (lines without ends), how long it took, its peak resident memory."""

    argv: tuple[str, ...]
    returncode: int
    seconds: float
    peak_rss_bytes: int | None
    stdout: tuple[str, ...]
    stderr: tuple[str, ...]

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last eight lines of stderr, or of stdout where stderr is empty: the tool's own words."""
        said = [line for line in self.stderr if line.strip()] or [line for line in self.stdout if line.strip()]
        return tuple(said[-8:])
