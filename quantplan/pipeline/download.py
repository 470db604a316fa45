"""Files of a repository at a commit onto the disk: only those asked for, several at once, each proved by its hash."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from quantplan import errors
from quantplan.artifact.receipt import write_atomically
from quantplan.model.hub import Hub
from quantplan.model.repository import HubFile, Repository
from quantplan.pipeline.fetch import INCOMPLETE, Fetching, Stopped, digest_of, fetch
from quantplan.places import cache_folder

N_AT_ONCE = 4
VERIFIED = ".verified.json"  # name -> size, time of change, inode and hash of what was proved to be the hub's
KEEP_FREE_BYTES = 64 * 1024 * 1024
NO_LIMIT_S = 10.0 * 24 * 3600


class Progress(Protocol):
    """How a download is shown: one bar for all files."""

    def start(self, n_bytes: int) -> None: ...
    def add(self, n_bytes: int) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """Where the files lie now. `fetched_bytes` came over the network, `linked` were in huggingface_hub's cache."""

    folder: Path
    files: tuple[Path, ...]
    fetched_bytes: int
    linked: tuple[str, ...] = field(default=())


def downloads_folder() -> Path:
    return cache_folder() / "downloads"


def source_folder(repository: Repository) -> Path:
    """Where the files of a repository at a commit are put: a folder that holds what was asked for and nothing else."""
    return downloads_folder() / repository.id.replace("/", "--") / repository.commit


def missing_bytes(repository: Repository, names: Sequence[str]) -> int:
    """How many bytes of these files are not in their folder yet (broken downloads count for what they have)."""
    folder, missing = source_folder(repository), 0
    for name in names:
        path, partial = folder / name, folder / (name + INCOMPLETE)
        if not path.exists():
            have = partial.stat().st_size if partial.exists() else 0
            missing += max(0, (repository.file(name).n_bytes or 0) - have)
    return missing


def download(
    hub: Hub, repository: Repository, names: Sequence[str], *, progress: Progress,
    sleep: Callable[[float], None] = time.sleep, n_at_once: int = N_AT_ONCE,
) -> Downloaded:  # fmt: skip
    """The files under `source_folder`. What is there and proved is left; what huggingface_hub's cache holds is linked.

    Raises HubContentDiffers where content stays wrong, NoDiskSpace, HubFileNotFound or a HubError.
    """
    folder = source_folder(repository)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder, progress.say):
        work = _Work(hub=hub, repository=repository, folder=folder, progress=progress, sleep=sleep)
        files = [repository.file(name) for name in dict.fromkeys(names)]
        open_ones = [file for file in files if not work.is_there(file)]
        _check_space(folder, [file for file in open_ones if not work.is_kept(file)])
        progress.start(sum(file.n_bytes or 0 for file in open_ones))
        try:
            several_at_once(open_ones, work.fetch, work.stop, n_at_once)
        finally:
            progress.stop()
    return Downloaded(
        folder=folder, files=tuple(folder / file.name for file in files), fetched_bytes=work.n_fetched,
        linked=tuple(sorted(work.linked)),
    )  # fmt: skip


def several_at_once(
    files: Sequence[HubFile], fetch: Callable[[HubFile], None], stop: threading.Event, n_at_once: int = N_AT_ONCE
) -> None:
    """Each file fetched, the largest first. The first failure stops the others, and is raised."""
    largest_first = sorted(files, key=lambda file: -(file.n_bytes or 0))
    with ThreadPoolExecutor(max_workers=n_at_once) as pool:
        running = [pool.submit(fetch, file) for file in largest_first]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            _give_up(pool, stop)
            raise
        failed = [task.exception() for task in done if task.exception() is not None]
        if failed:
            _give_up(pool, stop)
    for error in failed:
        if error is not None and not isinstance(error, Stopped):
            raise error


def _give_up(pool: ThreadPoolExecutor, stop: threading.Event) -> None:
    stop.set()
    pool.shutdown(wait=False, cancel_futures=True)


class _Work:
    """One download: its folder's record of proved files, shared by the threads."""

    def __init__(
        self, *, hub: Hub, repository: Repository, folder: Path, progress: Progress, sleep: Callable[[float], None]
    ) -> None:
        self._hub, self._repository, self._folder = hub, repository, folder
        self._progress, self._sleep = progress, sleep
        self._lock, self.stop = threading.Lock(), threading.Event()
        self._proved: dict[str, list[object]] = _read_proved(folder)
        self.n_fetched, self.linked = 0, list[str]()

    def is_there(self, file: HubFile) -> bool:
        """Whether the file lies there and is what the hub describes; what is something else is deleted."""
        path = self._folder / file.name
        if not path.exists():
            path.unlink(missing_ok=True)  # a link whose target is gone
            return False
        if self._proved.get(file.name) == _stamp(path, file):
            return True
        if path.stat().st_size == (file.n_bytes or path.stat().st_size) and digest_of(path, file) == file.digest:
            self._prove(file)
            return True
        self._progress.say(f"{file.name}: what lies here is not what the hub describes; it is fetched again")
        path.unlink()
        return False

    def fetch(self, file: HubFile) -> None:
        if self.stop.is_set():
            raise Stopped
        target = self._folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._link_kept(file, target):
            return
        ranges = self._hub.ranges(self._repository.id, self._repository.commit, file.name, max_s=NO_LIMIT_S)
        how = Fetching(
            repo=self._repository.id, on_bytes=self._progress.add, say=self._progress.say, sleep=self._pause,
            stop=self.stop,
        )  # fmt: skip
        fetch(file, target, ranges, how)
        with self._lock:
            self.n_fetched += target.stat().st_size
        self._prove(file)

    def _pause(self, seconds: float) -> None:
        if self.stop.is_set():
            raise Stopped
        self._sleep(seconds)

    def is_kept(self, file: HubFile) -> bool:
        """Whether huggingface_hub's cache seems to hold the file."""
        return self._kept(file) is not None

    def _kept(self, file: HubFile) -> Path | None:
        return self._hub.kept_by_client(self._repository.id, self._repository.commit, file.name, file.digest)

    def _link_kept(self, file: HubFile, target: Path) -> bool:
        """Links what huggingface_hub's cache holds, when its content is proved: the cache checks sizes only."""
        expected, kept = file.digest, self._kept(file)
        if kept is None or expected is None:
            return False
        if kept.stat().st_size != file.n_bytes or digest_of(kept, file) != expected:
            self._progress.say(f"{file.name}: huggingface_hub's cache holds other content; it is fetched anew")
            return False
        target.symlink_to(kept.resolve())
        with self._lock:
            self.linked.append(file.name)
        self._progress.add(file.n_bytes or 0)
        self._prove(file)
        return True

    def _prove(self, file: HubFile) -> None:
        with self._lock:
            self._proved[file.name] = _stamp(self._folder / file.name, file)
            write_atomically(self._folder / VERIFIED, json.dumps(self._proved, indent=1))


def _stamp(path: Path, file: HubFile) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, file.digest]


def _read_proved(folder: Path) -> dict[str, list[object]]:
    try:
        told = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _check_space(folder: Path, files: Sequence[HubFile]) -> None:
    partials = ((file, folder / (file.name + INCOMPLETE)) for file in files)
    need = sum((file.n_bytes or 0) - (part.stat().st_size if part.exists() else 0) for file, part in partials)
    free = shutil.disk_usage(folder).free
    if need > 0 and free < need + KEEP_FREE_BYTES:
        raise errors.NoDiskSpace(path=folder, need_bytes=need + KEEP_FREE_BYTES, free_bytes=free)


@contextmanager
def _only_one(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Two downloads of the same files: the second waits and then finds them."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is downloading these files: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
