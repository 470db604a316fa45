"""Everything that quantplan keeps on this machine: what it is, how large, who needs it, and what may go."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from quantplan import errors
from quantplan.artifact.receipt import read_receipt
from quantplan.artifact.registry import artifacts_below, remembered
from quantplan.artifact.store import gate_objection, read_artifact
from quantplan.errors import BadArtifact
from quantplan.llama.toolchain import SDIST_VERSION
from quantplan.pipeline.lock import holder
from quantplan.places import cache_folder

WORK = ".work"
_BLOCK_BYTES = 512  # st_blocks counts these


class Kind(Enum):
    """What an item is; also the first part of its name."""

    ARTIFACT = "artifact"
    WORK = "work"
    DOWNLOAD = "download"
    REFERENCE = "reference"
    TOOLCHAIN = "toolchain"
    CACHE = "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing on the disk. `n_bytes` are its blocks; `frees_bytes` those that nobody else links to.
    `needed_by` are artifacts that would break without it, or who works on it now; `stale` why it may go, or None."""

    kind: Kind
    name: str
    path: Path
    n_bytes: int
    frees_bytes: int
    logits_bytes: int = 0
    needed_by: tuple[str, ...] = ()
    stale: str | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        return f"{self.kind.value}:{self.name}"


def inventory(outputs: Sequence[Path]) -> tuple[Item, ...]:
    """All items: artifacts below these output folders and those that were remembered, work folders, the cache."""
    folders = dict.fromkeys(path.absolute() for output in outputs for path in artifacts_below(output))
    folders |= dict.fromkeys(path.absolute() for path in remembered())
    artifacts = tuple(folders)
    links = _links(artifacts)
    places = dict.fromkeys([*(path.absolute() for path in outputs), *(path.parent for path in artifacts)])
    return (
        *(_artifact(path) for path in artifacts),
        *(item for place in places for item in _work(place, artifacts)),
        *_downloads(links),
        *_each(cache_folder() / "references", Kind.REFERENCE, links, stale="can be built again from its base model"),
        *_toolchains(artifacts),
        *_caches(),
    )


def find_item(items: Sequence[Item], given: str) -> Item:
    """The item of that label, name or path. Raises UnknownItem, ChooseFile where a name is several items'."""
    path = Path(given).expanduser().absolute()
    matches = [one for one in items if given in (one.label, one.name) or one.path == path]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise errors.ChooseFile(model=given, asked=None, choices=tuple(one.label for one in matches))
    raise errors.UnknownItem(name=given)


def remove_item(item: Item) -> None:
    """Deletes it. Raises StillNeeded where an artifact needs it or somebody works on it."""
    if item.needed_by:
        raise errors.StillNeeded(name=item.label, needed_by=item.needed_by)
    if item.path.is_dir() and not item.path.is_symlink():
        aside = item.path.with_name(f".{item.path.name}.deleted")  # half a deletion leaves no half artifact
        shutil.rmtree(aside, ignore_errors=True)
        item.path.rename(aside)
        shutil.rmtree(aside)
    else:
        item.path.unlink(missing_ok=True)


def _artifact(path: Path) -> Item:
    try:
        found = read_artifact(path)
        objection = gate_objection(found)
        note = f"{found.receipt.quant}, {'validated' if objection is None else objection}"
    except BadArtifact as error:
        note = error.why
    return _item(Kind.ARTIFACT, str(path), path, note=note)


def _links(artifacts: Iterable[Path]) -> dict[Path, list[str]]:
    """Files elsewhere that artifacts link to symbolically, with those artifacts."""
    found: dict[Path, list[str]] = {}
    for folder in artifacts:
        for path in folder.iterdir():
            if path.is_symlink():
                found.setdefault(path.resolve(), []).append(str(folder))
    return found


def _needed(folder: Path, links: dict[Path, list[str]]) -> tuple[str, ...]:
    real = folder.resolve()
    return tuple(dict.fromkeys(n for path, names in links.items() if path.is_relative_to(real) for n in names))


def _work(output: Path, artifacts: Sequence[Path]) -> Iterator[Item]:
    """Work folders of builds: stale once an artifact of theirs is there."""
    for path in sorted((output / WORK).glob("*")):
        if not path.is_dir() or path.name.startswith("."):
            continue
        pid = holder(path)
        busy = (f"a build is at work (process {pid})",) if pid is not None else ()
        done = any(one.parent == output and one.name.startswith(f"{path.name}-") for one in artifacts)
        stale = "its artifacts are laid out; only another preset of it would start from here" if done else None
        yield _item(Kind.WORK, str(path), path, needed_by=busy, stale=None if busy else stale)
    for path in sorted(output.glob(".*.partial")):
        yield _item(Kind.WORK, str(path), path, stale="the rest of something that was interrupted")


def _downloads(links: dict[Path, list[str]]) -> Iterator[Item]:
    base = cache_folder() / "downloads"
    for path in sorted(base.glob("*/*")):
        if path.is_dir():
            busy = ("a download is under way",) if _locked(path / ".lock") else ()
            needed = (*_needed(path, links), *busy)
            name = str(path.relative_to(base))
            stale = None if needed else "can be fetched again; no artifact links to it"
            yield _item(Kind.DOWNLOAD, name, path, needed_by=needed, stale=stale)


def _each(folder: Path, kind: Kind, links: dict[Path, list[str]], *, stale: str) -> Iterator[Item]:
    for path in sorted(folder.glob("*")):
        needed = _needed(path, links)
        yield _item(kind, path.name, path, needed_by=needed, stale=None if needed else stale)


def _toolchains(artifacts: Sequence[Path]) -> Iterator[Item]:
    """Builds of llama.cpp. The pinned one stays; another one stays while an artifact was made with it."""
    installing = any(_locked(lock) for lock in (cache_folder() / "toolchains").glob("*.lock"))
    used = {version for path in artifacts if (version := _built_with(path)) is not None}
    for path in sorted((cache_folder() / "toolchains").glob("*")):
        if not path.is_dir():
            continue
        version = path.name.partition("-")[0]
        unfinished = not (path / "manifest.json").is_file()
        stale = "an installation that was interrupted" if unfinished else "another version is pinned now"
        is_pinned = version == SDIST_VERSION and not unfinished
        makers = tuple(used_by for used_by, made in ((str(p), _built_with(p)) for p in artifacts) if made == version)
        needed = makers if version in used and not unfinished else ()
        if unfinished and installing:
            needed = ("an installation under way",)
        yield _item(
            Kind.TOOLCHAIN, path.name, path, needed_by=needed, stale=None if is_pinned or needed else stale,
            note="the pinned build" if is_pinned else None,
        )  # fmt: skip


def _built_with(folder: Path) -> str | None:
    try:
        tools = read_receipt(folder).tools
    except BadArtifact:
        return None
    return SDIST_VERSION if tools.get("sdist_sha256") else str(tools.get("version") or "") or None


def _caches() -> Iterator[Item]:
    """Small things that are made again when they are needed: headers, vocabularies, files without weights."""
    for name, stale in (
        ("hub", None), ("vocabularies", None), ("weightless", "files without weights of runs that ended"),
        ("sdists", None), ("build-programs", None),
    ):  # fmt: skip
        path = cache_folder() / name
        if path.is_dir() and any(path.iterdir()):
            yield _item(Kind.CACHE, name, path, stale=stale)


def _item(
    kind: Kind, name: str, path: Path, *, needed_by: tuple[str, ...] = (), stale: str | None = None,
    note: str | None = None,
) -> Item:  # fmt: skip
    n_bytes, frees, logits = _sizes(path)
    return Item(kind=kind, name=name, path=path, n_bytes=n_bytes, frees_bytes=frees, logits_bytes=logits,
                needed_by=needed_by, stale=stale, note=note)  # fmt: skip


def _sizes(path: Path) -> tuple[int, int, int]:
    """Blocks on the disk; those that deleting it would free; those of files of log-probabilities."""
    total = frees = logits = 0
    seen: dict[tuple[int, int], int] = {}
    for file in [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]:
        try:
            status = file.lstat()
        except OSError:
            continue
        key, n_bytes = (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES
        seen[key] = seen.get(key, 0) + 1
        total += n_bytes if seen[key] == 1 else 0
        frees += n_bytes if seen[key] == status.st_nlink or file.is_dir() else 0
        logits += n_bytes if file.suffix == ".logits" else 0
    return total, frees, logits


def _locked(path: Path) -> bool:
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
