"""Which weights can be read from the hub, and their bytes from one offset to another, whatever the connection does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantplan import errors
from quantplan.model.ranges import OpenRange
from quantplan.model.repository import HubFile, Repository
from quantplan.pipeline.candidate import Candidate
from quantplan.pipeline.download import NO_LIMIT_S
from quantplan.pipeline.fetch import N_STALLED, Fetching, OnBytes, Say, Stopped, wait_before_next
from quantplan.pipeline.needed import Needed

if TYPE_CHECKING:
    from quantplan.model.hub import Hub

N_PASSES = 2  # the whole files for their hashes, then tensor by tensor for the converter


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWeights:
    """The weights of a repository at a commit, each with the size and sha256 that the hub tells."""

    hub: Hub
    repository: Repository
    files: tuple[HubFile, ...]
    sleep: Callable[[float], object] | None = field(default=None, repr=False)  # None: until the reading is stopped

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes or 0 for file in self.files)

    def open(self, file: HubFile) -> OpenRange:
        """Ranges of one of the files, for as long as it takes."""
        return self.hub.ranges(self.repository.id, self.repository.commit, file.name, max_s=NO_LIMIT_S)

    def fetching(self, on_bytes: OnBytes, say: Say) -> Fetching:
        """How they are fetched. Its `stop` ends all that waits or reads."""
        stop = threading.Event()

        def pause(seconds: float) -> None:
            (self.sleep or stop.wait)(seconds)
            if stop.is_set():
                raise Stopped

        return Fetching(repo=self.repository.id, on_bytes=on_bytes, say=say, sleep=pause, stop=stop)


def remote_weights(candidate: Candidate, needed: Needed) -> RemoteWeights:
    """The weights of a candidate. Raises CannotReadRemotely with the reason where they cannot be read so."""
    why = None
    if candidate.repository is None or candidate.hub is None:
        why = "they are a folder on this disk already"
    elif needed.weights_are_pickled:
        why = "they are pickled, and only a safetensors file tells where its tensors are"
    else:
        files = tuple(candidate.repository.file(name) for name in needed.weights)
        untold = next((file.name for file in files if file.sha256 is None or file.n_bytes is None), None)
        if untold is None:
            return RemoteWeights(hub=candidate.hub, repository=candidate.repository, files=files)
        why = f"the hub tells no sha256 of {untold}, by which what is read could be proved"
    raise errors.CannotReadRemotely(model=candidate.checkpoint.id, why=why)


def read_range(file: HubFile, start: int, end: int, open_range: OpenRange, how: Fetching) -> Iterator[bytes]:
    """The bytes of a file in order, each once; a broken answer is taken up where it broke.

    Raises a HubError where that does not help, HubFailed where the file has another size than its repository says.
    """
    have, stalled = start, 0
    while have < end:
        before, why = have, None
        try:
            with open_range(have, end) as answer:
                other_size = answer.file_bytes not in (None, file.n_bytes)
                for piece in () if other_size else answer.chunks:
                    if how.stop.is_set():
                        raise Stopped
                    wanted = piece[: end - have]
                    have += len(wanted)
                    how.on_bytes(len(wanted))
                    yield wanted
                    if have >= end:
                        break
        except errors.HubNoRanges:
            raise
        except (errors.HubUnreachable, errors.HubFailed, errors.HubRateLimited) as error:
            why, other_size = error, False
        if other_size:
            told = f"says that {file.name} has {answer.file_bytes:,} bytes, its repository says {file.n_bytes:,}"
            raise errors.HubFailed(url=f"{how.repo}/{file.name}", status=200, why=told)
        if have >= end:
            return
        stalled = 0 if have > before else stalled + 1
        if stalled >= N_STALLED:
            short = f"the answers end after {have - start:,} of {end - start:,} bytes"
            raise why or errors.HubUnreachable(url=f"{how.repo}/{file.name}", why=short)
        wait_before_next(why, stalled, how)
