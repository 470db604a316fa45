"""The first pass: every weight file streams through sha256, and so does each of its tensors. Nothing is stored but
hashes and headers, in one small file; and a mark a file, so that a build that was killed does not read it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan import errors
from quantplan.artifact.receipt import write_atomically
from quantplan.model.ranges import OpenRange
from quantplan.model.repository import HubFile
from quantplan.model.safetensors_header import header_length, parse_safetensors_header
from quantplan.pipeline.download import several_at_once
from quantplan.pipeline.fetch import N_CONTENTS, Fetching
from quantplan.pipeline.remote.weights import RemoteWeights, read_range

MARKS = "source.digests.parts"  # a folder: <sha256 of the file>.json
_SCHEMA = "quantplan/source-digests/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDigest:
    """Where a tensor's bytes lie in its file, and their sha256."""

    name: str
    offset: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedFile:
    """A safetensors file whose hash was the hub's. `header` is what it begins with, its length included."""

    name: str
    sha256: str
    header: bytes
    tensors: tuple[TensorDigest, ...]


class _Streamed:
    """A file's bytes on their way through the hashes. What its header declares counts only once the whole is proved."""

    def __init__(self, file: HubFile) -> None:
        self._file, self._whole, self._one = file, hashlib.sha256(), hashlib.sha256()
        self.head, self.tensors = bytearray(), list[TensorDigest]()
        self.bad: errors.BadModelFile | None = None
        self._declared: list[tuple[str, int]] | None = None  # names and bytes of the tensors to come, the next one last
        self._at = self._left = 0

    def feed(self, piece: bytes) -> None:
        self._whole.update(piece)
        if self._declared is None:
            self.head += piece
            data = self._parse()
        else:
            data = piece
        self._feed_tensors(memoryview(data))

    def _parse(self) -> bytes:
        """The first bytes of data once the header is there."""
        name, size = self._file.name, self._file.n_bytes
        try:
            if len(self.head) < 8:
                return b""
            end = 8 + header_length(bytes(self.head[:8]), name=name, file_bytes=size)
            if len(self.head) < end:
                return b""
            tensors = parse_safetensors_header(bytes(self.head[8:end]), name=name, file_bytes=size)
        except errors.BadModelFile as error:
            self.bad, self._declared = error, []
            return b""
        data = bytes(self.head[end:])
        del self.head[end:]
        self._declared, self._at = [(tensor.name, tensor.n_bytes) for tensor in reversed(tensors)], end
        self._left = self._declared[-1][1] if self._declared else 0
        return data

    def _feed_tensors(self, data: memoryview) -> None:
        while self._declared and (len(data) or not self._left):
            self._one.update(data[: self._left])
            taken = min(self._left, len(data))
            data, self._left = data[taken:], self._left - taken
            if not self._left:
                name, n_bytes = self._declared.pop()
                digest = TensorDigest(name=name, offset=self._at, n_bytes=n_bytes, sha256=self._one.hexdigest())
                self.tensors.append(digest)
                self._at, self._one = self._at + n_bytes, hashlib.sha256()
                self._left = self._declared[-1][1] if self._declared else 0

    def found(self) -> str:
        return self._whole.hexdigest()


def prove_file(file: HubFile, open_range: OpenRange, how: Fetching) -> ProvedFile:
    """Reads a whole file once, or again while its hash is not the hub's. Raises HubContentDiffers, a HubError, or
    BadModelFile where the hub's own file is no safetensors file."""
    assert file.n_bytes is not None
    assert file.sha256 is not None
    for attempt in range(1, N_CONTENTS + 1):
        stream = _Streamed(file)
        for piece in read_range(file, 0, file.n_bytes, open_range, how):
            stream.feed(piece)
        if stream.found() == file.sha256:
            if stream.bad is not None:
                raise stream.bad
            return ProvedFile(
                name=file.name, sha256=file.sha256, header=bytes(stream.head), tensors=tuple(stream.tensors)
            )
        how.on_bytes(-file.n_bytes)
        how.say(f"{file.name}: what came is not what the hub describes (hash), attempt {attempt} of {N_CONTENTS}")
    raise errors.HubContentDiffers(
        repo=how.repo, file=file.name, expected=file.sha256, found=stream.found(), n_attempts=N_CONTENTS
    )


def prove_files(remote: RemoteWeights, marks: Path, how: Fetching) -> tuple[ProvedFile, ...]:
    """Every file proved, several at once; those that a mark tells of are not read again."""
    marks.mkdir(exist_ok=True)
    known = {file.name: _read_mark(marks, file) for file in remote.files}

    def prove(file: HubFile) -> None:
        found = prove_file(file, remote.open(file), how)
        write_atomically(_mark(marks, file), json.dumps(_to_json(found)))
        known[file.name] = found

    missing = []
    for file in remote.files:
        if known[file.name] is None:
            missing.append(file)
        else:
            how.on_bytes(file.n_bytes or 0)
    several_at_once(missing, prove, how.stop)
    return tuple(found for file in remote.files if (found := known[file.name]) is not None)


def write_digests(path: Path, files: Sequence[ProvedFile]) -> None:
    """All of it in one file."""
    told = {"schema": _SCHEMA, "files": [_to_json(file) for file in files]}
    path.write_text(json.dumps(told, separators=(",", ":")), encoding="utf-8")


def read_digests(path: Path) -> tuple[ProvedFile, ...]:
    """What write_digests wrote; its content was checked by its own hash."""
    return tuple(_from_json(one) for one in json.loads(path.read_text(encoding="utf-8"))["files"])


def digests_bytes(n_tensors: int) -> int:
    """About how long that file is: a tensor has its entry in the header and a digest."""
    return 400 * n_tensors


def _mark(marks: Path, file: HubFile) -> Path:
    return marks / f"{file.sha256}.json"


def _read_mark(marks: Path, file: HubFile) -> ProvedFile | None:
    try:
        found = _from_json(json.loads(_mark(marks, file).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if (found.name, found.sha256) == (file.name, file.sha256) else None


def _to_json(file: ProvedFile) -> dict[str, object]:
    rows = [[one.name, one.offset, one.n_bytes, one.sha256] for one in file.tensors]
    header = str(file.header[8:], "utf-8")  # JSON text, or it would not have been parsed
    return {"name": file.name, "sha256": file.sha256, "header": header, "tensors": rows}


def _from_json(told: dict[str, object]) -> ProvedFile:
    header, rows = str(told["header"]).encode(), told["tensors"]
    assert isinstance(rows, list)
    return ProvedFile(
        name=str(told["name"]), sha256=str(told["sha256"]), header=len(header).to_bytes(8, "little") + header,
        tensors=tuple(TensorDigest(name=n, offset=o, n_bytes=b, sha256=s) for n, o, b, s in rows),
    )  # fmt: skip
