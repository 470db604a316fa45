"""The two steps of a build that reads its weights from the hub: their proof, and the conversion that is fed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantplan.artifact.receipt import FileEntry
from quantplan.errors import ToolFailed
from quantplan.llama.process import Runner
from quantplan.llama.types import Completed
from quantplan.pipeline.files import remove
from quantplan.pipeline.remote.digests import MARKS, ProvedFile, prove_files, read_digests, write_digests
from quantplan.pipeline.remote.feed import TensorFeed
from quantplan.pipeline.remote.reader_process import FEED
from quantplan.pipeline.remote.weights import RemoteWeights
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import DIGESTS, READ_SOURCE
from quantplan.pipeline.source import Source
from quantplan.pipeline.steps import PARTIAL, Step, Tell
from quantplan.pipeline.traffic import Traffic

_PROGRAM = Path(__file__).with_name("reader_process.py")
_SHOWN = ("quantplan", "build", "--disk", "remote")
_BUILD = "source-digests/1"
_FOLDER = f"source{PARTIAL}"  # what a killed build leaves of it is removed by the next one


def read_source_step(work: Workplace, *, inputs: Sequence[FileEntry], tell: Tell) -> Step:
    """The step that proves every weight file by its hash and writes down those of its tensors."""
    remote = work.request.remote
    assert remote is not None
    names = {file.name for file in remote.files}

    def attempt(partial: Path, _run: Runner) -> Completed:
        started = time.monotonic()
        traffic = Traffic(remote.n_bytes, tell=lambda words: tell(READ_SOURCE, words))
        how = remote.fetching(traffic.add, lambda text: tell(READ_SOURCE, text))
        write_digests(partial, prove_files(remote, work.folder / MARKS, how))
        return Completed(
            argv=_SHOWN, returncode=0, seconds=time.monotonic() - started, peak_rss_bytes=None, stdout=(), stderr=()
        )

    return Step(
        name=READ_SOURCE, argv=_SHOWN, shown_argv=_SHOWN, inputs=tuple(one for one in inputs if one.name in names),
        output=work.file_name(DIGESTS), tool_build=_BUILD, attempt=attempt,
    )  # fmt: skip


def fed_conversion(
    work: Workplace, argv: Sequence[str], *, step: str, extra_env: Mapping[str, str], tell: Tell, run: Runner
) -> Completed:
    """The converter's command on a folder whose weights are headers only, fed from the hub.

    Raises TensorDiffers or a HubError where that is why the converter failed, else ToolFailed.
    """
    remote, source = work.request.remote, work.request.source
    assert remote is not None
    files = read_digests(work.path(DIGESTS))
    remove(work.folder / MARKS)  # all of them are in that file
    traffic = Traffic(remote.n_bytes if step == "convert" else None, tell=lambda words: tell(step, words))
    how = remote.fetching(traffic.add, lambda text: tell(step, text))
    with _headers_only(work.folder, source, files) as folder, TensorFeed(remote, files, how) as feed:
        _python, script, _folder, *options = argv
        words = (sys.executable, str(_PROGRAM), script, folder, *options)
        try:
            return run(words, step=step, extra_env={**extra_env, FEED: str(feed.fd)}, pass_fds=(feed.fd,))
        except ToolFailed as error:
            if feed.error is not None:
                raise feed.error from error
            raise


@contextmanager
def _headers_only(place: Path, source: Source, files: Sequence[ProvedFile]) -> Iterator[str]:
    """A folder of the source's name, relative to the work folder: small files linked, of the weights their headers."""
    outer = place / _FOLDER
    remove(outer)
    folder = outer / source.name
    folder.mkdir(parents=True)
    headers = {file.name: file.header for file in files}
    for path in source.files:
        local = folder / path.relative_to(source.folder)
        local.parent.mkdir(exist_ok=True)
        if path.name in headers:
            local.write_bytes(headers[path.name])
        else:
            local.symlink_to(path.resolve())
    try:
        yield f"{_FOLDER}/{source.name}"
    finally:
        remove(outer)


def how_read(remote: RemoteWeights) -> Mapping[str, object]:
    """What a receipt says of weights that were never here."""
    return {"how": "ranges", "weights": [file.name for file in remote.files], "bytes": remote.n_bytes}
