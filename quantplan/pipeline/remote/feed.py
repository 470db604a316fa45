"""The second pass: tensors for the converter, one at a time as it asks for them, each proved before it gets them.

The converter stays in its clean room, without network or token: it asks over a socket that it inherited.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Sequence
from types import TracebackType

from quantplan import errors
from quantplan.pipeline.fetch import N_CONTENTS, Fetching, Stopped
from quantplan.pipeline.remote.digests import ProvedFile, TensorDigest
from quantplan.pipeline.remote.weights import RemoteWeights, read_range

FRAME = struct.Struct("<BI")  # what follows, and its bytes
DATA, AGAIN, PROVED = range(3)  # reader_process.py has the same; AGAIN: what came is void, it comes again
_JOIN_S = 10.0
_MAX_QUESTION_BYTES = 64 * 1024


class TensorFeed:
    """Answers the process that inherits `fd`, in a thread, until the `with` block ends. `error` is what it failed at:
    more telling than what the converter then says."""

    def __init__(self, remote: RemoteWeights, files: Sequence[ProvedFile], how: Fetching) -> None:
        self._remote, self._how = remote, how
        self._files = {file.name: file for file in remote.files}
        self._tensors = {(file.name, one.offset, one.n_bytes): one for file in files for one in file.tensors}
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="feed-converter", daemon=True)
        self.error: Exception | None = None

    @property
    def fd(self) -> int:
        """The converter's end."""
        return self._theirs.fileno()

    def __enter__(self) -> TensorFeed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._how.stop.set()
        self._theirs.close()
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join(_JOIN_S)
        self._ours.close()

    def _serve(self) -> None:
        """Until the converter or the block ends. However this ends, the converter is not left waiting."""
        try:
            self._answer_all()
        except (ConnectionError, Stopped):
            pass
        except Exception as error:
            self.error = error
        finally:
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)

    def _answer_all(self) -> None:
        with self._ours.makefile("rb") as questions:
            while question := questions.readline(_MAX_QUESTION_BYTES):
                asked = json.loads(question)
                self._answer(asked["file"], asked["offset"], asked["bytes"])

    def _answer(self, name: str, offset: int, n_bytes: int) -> None:
        tensor = self._tensors.get((name, offset, n_bytes))
        if tensor is None:
            raise errors.HubFileNotFound(repo=self._how.repo, file=f"{name}, bytes {offset} to {offset + n_bytes}")
        file = self._files[name]
        for attempt in range(1, N_CONTENTS + 1):
            if self._send(file.name, tensor) == tensor.sha256:
                self._ours.sendall(FRAME.pack(PROVED, 0))
                return
            self._how.on_bytes(-n_bytes)
            self._how.say(f"{name}: {tensor.name} came with wrong bytes, attempt {attempt} of {N_CONTENTS}")
            self._ours.sendall(FRAME.pack(AGAIN, 0))
        raise errors.TensorDiffers(repo=self._how.repo, file=name, tensor=tensor.name, n_attempts=N_CONTENTS)

    def _send(self, name: str, tensor: TensorDigest) -> str:
        """Passes a tensor's bytes on as they come; the reader keeps them back until told that this hash is right."""
        file, digest = self._files[name], hashlib.sha256()
        end = tensor.offset + tensor.n_bytes
        for piece in read_range(file, tensor.offset, end, self._remote.open(file), self._how):
            digest.update(piece)
            self._ours.sendall(FRAME.pack(DATA, len(piece)))
            self._ours.sendall(piece)
        return digest.hexdigest()
