"""`scan`: a file, a folder or a repository, every part by the scan that is for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan import errors
from quantplan.artifact.results import Finding, Severity, Verdict
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.toolchain import SECURITY_FLOOR
from quantplan.llama.types import Toolchain
from quantplan.model.gguf_header import GgufHeader
from quantplan.model.gguf_split import shard_names
from quantplan.pipeline.scanning.files import Entry, Files, FolderOf, RepositoryOf
from quantplan.pipeline.scanning.gguf_file import Base, FindBase, TemplateScans, scan_header, scan_local
from quantplan.pipeline.scanning.metadata import TEMPLATE_KEY
from quantplan.pipeline.scanning.numbers import library_of
from quantplan.pipeline.scanning.source import source_findings
from quantplan.pipeline.scanning.source_template import source_templates
from quantplan.pipeline.scanning.structure import refused

if TYPE_CHECKING:
    from quantplan.model.model_name import HubName

MAX_GGUF = 128
_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What was found, the worst first. `numbers` says whether the tensors' data was looked at."""

    target: str
    revision: str | None
    n_files: int
    numbers: bool
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail where anything is more than a note."""
        return Verdict.PASS if all(one.severity is Severity.NOTE for one in self.findings) else Verdict.FAIL

    def to_json(self) -> dict[str, object]:
        from dataclasses import asdict

        counts = {s.value: sum(one.severity is s for one in self.findings) for s in Severity}
        return {"kind": "scan", "target": self.target, "revision": self.revision, "n_files": self.n_files,
                "numbers": self.numbers, "verdict": self.verdict.value, "counts": counts,
                "findings": [asdict(one) for one in self.findings]}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How to scan. `base` is none, auto (what the metadata or card names, where it can be had), a repository, a
    folder or a GGUF."""

    base: str = "auto"
    with_data: bool = True
    tools: Toolchain | None = None
    run: Runner = run_tool


def scan(target: str, request: Request) -> Scanned:
    """Raises UnknownModel, BadModelFile for what is not there, or a HubError."""
    scans = TemplateScans(run=request.run)
    path = Path(target).expanduser()
    if path.is_file() or path.is_symlink():
        return _of_file(path, request, scans)
    if path.is_dir():
        return _of_files(FolderOf(path), request, scans, target=target)
    if path.exists():
        found = Finding(rule="scan/path", severity=Severity.ERROR, message="is no regular file", file=path.name)
        return _told(target, (found,), request, n_files=1, numbers=False)
    return _of_repository(target, request, scans)


def _of_file(path: Path, request: Request, scans: TemplateScans) -> Scanned:
    folder = FolderOf(path.parent)
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF" or path.suffix == ".gguf"
    find_base = _finder(request, scans, card_base=None, own=None)
    if is_gguf:
        found = scan_local(path, scans=scans, find_base=find_base, library=library_of(request.tools),
                           with_data=request.with_data, run=request.run)  # fmt: skip
        return _told(str(path), found, request, n_files=len(shard_names(path.name)) or 1, numbers=request.with_data)
    entry = Entry(name=path.name, n_bytes=path.stat().st_size)
    found = tuple(source_findings(folder, {path.name: entry}, is_remote=False))
    found += _templates(folder, [path.name], scans)
    return _told(str(path), found, request, n_files=1, numbers=False)


def _of_repository(target: str, request: Request, scans: TemplateScans) -> Scanned:
    from quantplan.model.hub import Hub
    from quantplan.model.hub_cache import HubCache
    from quantplan.model.hub_files import HubFiles, find_repository
    from quantplan.model.model_name import hub_name
    from quantplan.places import cache_folder

    name = hub_name(target)
    if target.startswith(("./", "../", "/", "~")) or (name is None and Path(target).suffix):
        raise errors.BadModelFile(path=target, why="no such file or folder")
    if name is None:
        raise errors.UnknownModel(model=target)
    hub, cache = Hub(), HubCache(cache_folder() / "hub")
    repository, _ = find_repository(hub, cache, name.repo, name.revision)
    files = RepositoryOf(hub, HubFiles(hub, cache, repository))
    return _of_files(files, request, scans, target=target, only=_only(name, files), revision=repository.commit)


def _only(name: HubName, files: RepositoryOf) -> tuple[str, ...] | None:
    """The files that the name asks for; None for all."""
    from quantplan.model.gguf_choice import choose_gguf

    if name.file is None and name.quant is None:
        return None
    names = [one.name for one in files.entries()]
    chosen = name.file or choose_gguf(names, model=files.name, quant=name.quant)
    folder = chosen.rpartition("/")[0]
    return tuple(f"{folder}/{n}" if folder else n for n in shard_names(chosen.rpartition("/")[2]))


def _of_files(
    files: FolderOf | RepositoryOf, request: Request, scans: TemplateScans, *, target: str,
    only: Sequence[str] | None = None, revision: str | None = None,
) -> Scanned:  # fmt: skip
    entries = {one.name: one for one in files.entries() if only is None or one.name in only}
    is_remote = isinstance(files, RepositoryOf)
    found = list(source_findings(files, entries, is_remote=is_remote))
    names = [name for name, one in entries.items() if one.odd is None]
    found += _templates(files, names, scans)
    ggufs = [name for name in names if name.lower().endswith(".gguf") and _stands_for_its_model(name, names)]
    card_base = files.repository.base_model if isinstance(files, RepositoryOf) else None
    find_base = _finder(request, scans, card_base=card_base, own=files.name)
    for name in ggufs[:MAX_GGUF]:
        if isinstance(files, FolderOf):
            found += scan_local(files.folder / name, scans=scans, find_base=find_base, run=request.run, file=name,
                                library=library_of(request.tools), with_data=request.with_data)  # fmt: skip
            continue
        try:
            found += scan_header(files.gguf_header(name), name, scans=scans, find_base=find_base, structure=True)
        except errors.BadModelFile as error:
            found.append(refused(error, name))
    if len(ggufs) > MAX_GGUF:
        said = f"{len(ggufs) - MAX_GGUF} of {len(ggufs)} GGUF files were not looked into"
        found.append(Finding(rule="scan/unlooked", severity=Severity.WARNING, message=said, file=ggufs[MAX_GGUF]))
    numbers = bool(ggufs) and not is_remote and request.with_data
    return _told(target, found, request, n_files=len(entries), numbers=numbers, revision=revision)


def _stands_for_its_model(name: str, names: Sequence[str]) -> bool:
    """Whether it is the first of its model's files that are here: the others are read with it."""
    folder, _, base = name.rpartition("/")
    shards = [f"{folder}/{shard}" if folder else shard for shard in shard_names(base)]
    return len(shards) < 2 or name == next((shard for shard in shards if shard in names), name)


def _templates(files: Files, names: Sequence[str], scans: TemplateScans) -> tuple[Finding, ...]:
    found: list[Finding] = []
    try:
        for one in source_templates(files, names):
            found += scans.scan(one.text, file=one.file, where=one.where).findings
    except (errors.QuantplanError, OSError) as error:
        found.append(Finding(rule="scan/unreadable", severity=Severity.WARNING, message=str(error)[:200]))
    return tuple(found)


def _finder(request: Request, scans: TemplateScans, *, card_base: str | None, own: str | None) -> FindBase:
    """Finds the source's template, once for each source."""
    known: dict[str, Base | Finding] = {}

    def find(header: GgufHeader) -> Base | Finding | None:
        if request.base == "none":
            return None
        name = request.base if request.base != "auto" else card_base or base_model_of(header)
        if name is None or name == own:
            return None
        if name not in known:
            known[name] = _base(name, scans, must=request.base != "auto")
        return known[name]

    return find


def _base(name: str, scans: TemplateScans, *, must: bool) -> Base | Finding:
    try:
        text = _base_template(name)
    except (errors.QuantplanError, OSError) as error:
        if must:
            raise
        said = f"its base model {name} could not be asked for its template ({error})"
        return Finding(rule="scan/base-unread", severity=Severity.NOTE, message=said[:300], where=TEMPLATE_KEY)
    return Base(name=name, prompts=scans.scan(text, file=name, where="chat_template").prompts if text else None)


def _base_template(name: str) -> str | None:
    path = Path(name).expanduser()
    if path.is_file():
        from quantplan.model.gguf_header import read_gguf_header

        told = read_gguf_header(path).metadata.get(TEMPLATE_KEY)
        return told if isinstance(told, str) else None
    files: Files
    if path.is_dir():
        files = FolderOf(path)
    else:
        from quantplan.model.hub import Hub
        from quantplan.model.hub_cache import HubCache
        from quantplan.model.hub_files import HubFiles, find_repository
        from quantplan.model.model_name import hub_name
        from quantplan.places import cache_folder

        asked = hub_name(name)
        if asked is None:
            raise errors.UnknownModel(model=name)
        hub, cache = Hub(), HubCache(cache_folder() / "hub")
        repository, _ = find_repository(hub, cache, asked.repo, asked.revision)
        files = RepositoryOf(hub, HubFiles(hub, cache, repository))
    names = [one.name for one in files.entries() if one.odd is None]
    return next((one.text for one in source_templates(files, names) if one.is_default), None)


def base_model_of(header: GgufHeader) -> str | None:
    """The base model that the metadata names, as a repository of the hub."""
    from quantplan.model.model_name import hub_name

    url = header.metadata.get("general.base_model.0.repo_url") or header.metadata.get("general.source.url")
    told = "/".join(str(url).rstrip("/").split("/")[-2:]) if isinstance(url, str) else None
    return told if told and hub_name(told) else None


def engine_findings(tools: Toolchain | None) -> tuple[Finding, ...]:
    """An engine here that is unsafe for files from strangers."""
    number = tools.build.number if tools else None
    if tools is None or number is None or not 1000 < number < SECURITY_FLOOR:
        return ()
    said = (f"the llama.cpp here ({tools.folder}) is b{number}, older than b{SECURITY_FLOOR}: its loader is unsafe "
            "for files you did not make (CVE-2026-27940)")  # fmt: skip
    return (Finding(rule="scan/engine", severity=Severity.WARNING, message=said, help="quantplan toolchain install"),)


def _told(target: str, found: Sequence[Finding], request: Request, *, n_files: int, numbers: bool,
          revision: str | None = None) -> Scanned:  # fmt: skip
    ordered = sorted((*found, *engine_findings(request.tools)), key=lambda one: _ORDER[one.severity])
    return Scanned(target=target, revision=revision, n_files=n_files, numbers=numbers, findings=tuple(ordered))
