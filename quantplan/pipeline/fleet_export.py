"""A build file for engines that people run already: a workflow of GitHub, an Argo Workflow, Jobs of Kubernetes.

Each build is the commands that `fleet run` starts here. In a cluster all write to one volume, so that conversions,
downloads and receipts are shared as on one machine: the locks of the pipeline are files on it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from quantplan.errors import BadFleet
from quantplan.pipeline.fleet_commands import How, unit_commands
from quantplan.pipeline.fleet_file import Entry, Fleet
from quantplan.pipeline.fleet_order import Unit, units_of

_MAX_FILES_BYTES = 900_000  # a ConfigMap holds 1 MiB, names and base64 included
_NO_NAME = re.compile(r"[^a-z0-9-]+")


class Engine(Enum):
    """What can run a build file."""

    GITHUB = "github"
    ARGO = "argo"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the builds run. `image` has quantplan and its tools; `claim` is the volume that all share."""

    image: str = ""
    claim: str = "quantplan-artifacts"
    storage: str | None = None  # makes the claim too, of this size
    share_cache: bool = False  # downloads and tools on the volume, instead of the image's own
    namespace: str | None = None
    token_secret: str = "hf-token"
    package: str = "quantplan"
    runner: str = "ubuntu-latest"
    directory: str = "."  # of the build file, in the repository of the workflow
    deadline_s: int = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One build: its name as DNS allows it, and the script that makes it."""

    unit: Unit
    name: str
    script: str
    needs: tuple[str, ...]  # names of tasks
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """All builds, and the files that they read, by the names they have where they run."""

    fleet: Fleet
    tasks: tuple[Task, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def tasks_of(fleet: Fleet, *, output: str, files_at: str | None, memory: Mapping[str, int]) -> Tasks:
    """The builds with every file named as it is found there: below `files_at`, else from the build file's folder.

    Raises BadFleet for a model or file that is on this machine only.
    """
    moved = _Moved(fleet, files_at)
    entries = tuple(moved.entry(entry) for entry in fleet.entries)
    units = units_of(entries)
    names = _names(units)
    by_entry = {entry.id: names[unit.name] for unit in units for entry in unit.entries}
    tasks = []
    for unit in units:
        alone = sum(other.lane == unit.lane for other in units) == 1
        gated = any(entry.gates for entry in unit.entries)
        how = How(output=output, disk="fast" if gated else fleet.disk, keep=fleet.keep or files_at is None or not alone)
        needs = tuple(dict.fromkeys(by_entry[name] for name in unit.needs))
        tasks.append(Task(unit=unit, name=names[unit.name], script=_script(unit, how), needs=needs,
                          memory_bytes=memory.get(unit.name)))  # fmt: skip
    return Tasks(fleet=fleet, tasks=tuple(tasks), files=moved.files)


def _script(unit: Unit, how: How) -> str:
    """One command a line; the first that fails ends it with its status."""
    lines = []
    for command in unit_commands(unit, how):
        lines.append(shlex.join(("quantplan", *(word for word in command.words if word != "--json"))))
    return "\n".join(lines) + "\n"


def _names(units: Sequence[Unit]) -> Mapping[str, str]:
    """DNS labels of at most 40 characters, unique."""
    found: dict[str, str] = {}
    for unit in units:
        name = _NO_NAME.sub("-", unit.name.lower()).strip("-") or "build"
        if len(name) > 40 or name in found.values():
            name = f"{name[:31].strip('-')}-{hashlib.sha256(unit.name.encode()).hexdigest()[:8]}"
        found[unit.name] = name
    return found


class _Moved:
    """Entries with their files where they will be, and the content of those that must travel."""

    def __init__(self, fleet: Fleet, files_at: str | None) -> None:
        self._fleet, self._at = fleet, files_at
        self.files: dict[str, bytes] = {}

    def entry(self, entry: Entry) -> Entry:
        own = entry.options
        options = replace(
            own, texts=tuple(self._text(text) for text in own.texts), calibration=self._maybe(own.calibration),
            imatrix=self._maybe(own.imatrix), tensor_type_file=self._maybe(own.tensor_type_file),
        )  # fmt: skip
        gates = tuple(self._file(Path(gate)) if Path(gate).is_file() else gate for gate in entry.gates)
        return replace(entry, model=self._model(entry), options=options, gates=gates)

    def _model(self, entry: Entry) -> str:
        folder = Path(entry.model)
        if not folder.is_absolute():
            return entry.model
        inside = self._inside(folder)
        if self._at is not None or inside is None:
            why = f"the model {folder} is a folder of this machine: name one of the hub"
            raise BadFleet(path=self._fleet.path, where=entry.id, why=why)
        return f"./{inside}"

    def _inside(self, path: Path) -> str | None:
        """A path from the build file's folder, None where it is not below it."""
        root = self._fleet.path.parent.resolve()
        full = path.resolve()
        return str(full.relative_to(root)) if full.is_relative_to(root) else None

    def _text(self, text: str) -> str:
        name, mark, rest = text.rpartition("=")
        path = Path(rest)
        return f"{name or path.stem}={self._file(path)}" if mark else f"{path.stem}={self._file(path)}"

    def _maybe(self, path: Path | None) -> Path | None:
        return Path(self._file(path)) if path is not None else None

    def _file(self, path: Path) -> str:
        if self._at is None:
            inside = self._inside(path)
            if inside is None:
                why = f"{path} does not lie below the build file's folder, which is all that travels"
                raise BadFleet(path=self._fleet.path, where="", why=why)
            return inside
        content = path.read_bytes()
        name = f"{hashlib.sha256(content).hexdigest()[:12]}-{re.sub(r'[^A-Za-z0-9._-]', '-', path.name)}"
        self.files[name] = content
        if sum(map(len, self.files.values())) > _MAX_FILES_BYTES:
            why = f"its files have more than {_MAX_FILES_BYTES:,} bytes: a ConfigMap cannot carry them"
            raise BadFleet(path=self._fleet.path, where="", why=why)
        return f"{self._at}/{name}"


def config_map_data(files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """`data` for what is text, `binaryData` for what is not."""
    told: dict[str, dict[str, str]] = {}
    for name, content in files.items():
        try:
            text = content.decode("utf-8")
            if "\x00" in text or "\r" in text:
                raise ValueError
            told.setdefault("data", {})[name] = text
        except ValueError:
            told.setdefault("binaryData", {})[name] = base64.b64encode(content).decode()
    return told


def rendered(documents: Sequence[Mapping[str, Any]], *, head: str) -> str:
    """YAML, scripts as blocks that can be read, after a comment."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    body = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(f"# {line}\n" for line in head.splitlines()) + body
