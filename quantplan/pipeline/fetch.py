"""One file of the hub onto the disk: resumed where it broke, and believed only when its hash is the hub's.

huggingface_hub's own download compares the size alone and begins again after every interruption; what it does well
(addresses, tokens, redirects, sessions) is used through `model.hub`.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quantplan import errors
from quantplan.model.ranges import OpenRange
from quantplan.model.repository import HubFile

INCOMPLETE = ".incomplete"
N_STALLED = 6  # attempts in a row without a new byte: then it is given up
N_CONTENTS = 3  # times that a file is fetched whole before its content is said to be wrong
MAX_WAIT_S = 300  # that a rate limit may ask for
_PIECE_BYTES = 1 << 22

OnBytes = Callable[[int], None]  # bytes that came (or, negative, that turned out to be worth nothing)
Say = Callable[[str], None]


class Stopped(Exception):
    """Another file of the same download failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """What fetching a file needs of the outside."""

    repo: str
    on_bytes: OnBytes
    say: Say
    sleep: Callable[[float], None] = time.sleep
    stop: threading.Event = field(default_factory=threading.Event)


def digest_of(path: Path, file: HubFile) -> str | None:
    """The hash of what lies there, of the kind that the hub tells for the file; None where it tells none."""
    hasher = file.hasher(path.stat().st_size)
    if hasher is None:
        return None
    with path.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def fetch(file: HubFile, target: Path, open_range: OpenRange, how: Fetching) -> None:
    """The file under its name, whole and of the right content; what came before an interruption is used.

    Raises HubContentDiffers, NoDiskSpace or a HubError; what has come then stays beside it for the next time.
    """
    partial = target.with_name(target.name + INCOMPLETE)
    expected = file.digest
    for attempt in range(1, N_CONTENTS + 1):
        _fill(file, partial, open_range, how)
        found = digest_of(partial, file)
        if found == expected:
            with partial.open("rb") as content:
                os.fsync(content.fileno())
            partial.replace(target)
            return
        how.on_bytes(-partial.stat().st_size)
        partial.unlink()
        how.say(f"{file.name}: what came is not what the hub describes (hash), attempt {attempt} of {N_CONTENTS}")
    raise errors.HubContentDiffers(
        repo=how.repo, file=file.name, expected=str(expected), found=str(found), n_attempts=N_CONTENTS
    )


def _fill(file: HubFile, partial: Path, open_range: OpenRange, how: Fetching) -> None:
    """Appends until the file has its size. Broken answers are taken up where they broke."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    have = partial.stat().st_size
    if file.n_bytes is not None and have > file.n_bytes:
        os.truncate(partial, 0)
        have = 0
    how.on_bytes(have)
    stalled = n_restarts = 0
    while file.n_bytes is None or have < file.n_bytes:
        before = have
        try:
            have = _append(file, partial, have, open_range, how)
            if file.n_bytes is None:
                return
            why: errors.QuantplanError | None = None
        except (errors.HubUnreachable, errors.HubFailed, errors.HubRateLimited) as error:
            why, have = error, partial.stat().st_size
            if isinstance(error, errors.HubNoRanges) and n_restarts < N_STALLED:
                os.truncate(partial, 0)
                how.on_bytes(-have)
                have, n_restarts = 0, n_restarts + 1
                continue
        if have >= (file.n_bytes or math.inf):
            break
        stalled = 0 if have > before else stalled + 1
        if stalled >= N_STALLED:
            short = f"the answers end after {have:,} of {file.n_bytes or 0:,} bytes"
            raise why or errors.HubUnreachable(url=f"{how.repo}/{file.name}", why=short)
        wait_before_next(why, stalled, how)


def _append(file: HubFile, partial: Path, have: int, open_range: OpenRange, how: Fetching) -> int:
    """One answer from byte `have` on, written as it comes; returns how many bytes there are then."""
    with open_range(have, None) as answer:
        if answer.file_bytes not in (None, file.n_bytes) and file.n_bytes is not None:
            why = f"says that {file.name} has {answer.file_bytes:,} bytes, its repository says {file.n_bytes:,}"
            raise errors.HubFailed(url=f"{how.repo}/{file.name}", status=200, why=why)
        with partial.open("ab") as out:
            for piece in answer.chunks:
                if how.stop.is_set():
                    raise Stopped
                wanted = piece if file.n_bytes is None else piece[: file.n_bytes - have]
                _write(out.write, wanted, partial)
                have += len(wanted)
                how.on_bytes(len(wanted))
                if len(wanted) < len(piece):
                    break
    return have


def _write(write: Callable[[bytes], int], piece: bytes, path: Path) -> None:
    try:
        write(piece)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        import shutil

        raise errors.NoDiskSpace(
            path=path.parent, need_bytes=len(piece), free_bytes=shutil.disk_usage(path.parent).free
        ) from error


def wait_before_next(why: errors.QuantplanError | None, stalled: int, how: Fetching) -> None:
    """Before the next attempt: as long as a rate limit asks for, else longer from time to time."""
    seconds = min(30.0, 0.5 * 2**stalled)
    if isinstance(why, errors.HubRateLimited) and why.retry_after_s is not None:
        if why.retry_after_s > MAX_WAIT_S:
            raise why
        seconds = float(why.retry_after_s)
        how.say(f"the hub asks to wait {why.retry_after_s} s (rate limit)")
    how.sleep(seconds)
