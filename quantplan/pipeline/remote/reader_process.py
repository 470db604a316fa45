"""The pinned converter, with the bytes of its tensors from whoever started it instead of from its folder.

A program of its own (`python reader_process.py SCRIPT WORD…`): the script runs with those words as it would alone. The
safetensors files in its folder hold their headers only, so whoever reads a tensor another way than this fails; and
FEED names the socket to ask at. Nothing of quantplan is imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import struct
import sys
from pathlib import Path
from typing import Any

FEED = "QUANTPLAN_FEED"  # the number of an inherited socket
FRAME = struct.Struct("<BI")  # feed.py has the same
DATA, AGAIN, PROVED = range(3)


class Feed:
    """One tensor at a time, in memory; its bytes are proved when they are returned."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self, file: str, offset: int, n_bytes: int) -> bytearray:
        """Those bytes. Raises RuntimeError where they cannot be had: the other side knows why."""
        question = json.dumps({"file": file, "offset": offset, "bytes": n_bytes})
        self._connection.sendall(question.encode() + b"\n")
        content, have = memoryview(bytearray(n_bytes)), 0
        frame = memoryview(bytearray(FRAME.size))
        while True:
            self._fill(frame)
            kind, length = FRAME.unpack(frame)
            if kind == DATA and have + length <= n_bytes:
                self._fill(content[have : have + length])
                have += length
            elif kind == AGAIN:
                have = 0
            elif kind == PROVED and have == n_bytes:
                return content.obj  # type: ignore[return-value]
            else:
                raise RuntimeError(f"{file}: an answer that is none to the tensor at byte {offset}")

    def _fill(self, place: memoryview) -> None:
        have = 0
        while have < len(place):
            n = self._connection.recv_into(place[have:])
            if not n:
                raise RuntimeError("the tensor could not be read from the hub")
            have += n


def main() -> None:
    script = Path(sys.argv[1])
    feed = Feed(socket.socket(fileno=int(os.environ[FEED])))
    sys.argv = sys.argv[1:]
    sys.path[0] = str(script.parent)  # as it is for the script alone
    sys.path.insert(1, str(script.parent / "gguf-py"))
    utility: Any = importlib.import_module("gguf.utility")
    numpy: Any = importlib.import_module("numpy")

    def mmap_bytes(tensor: Any) -> Any:
        found = tensor.data_range
        return numpy.frombuffer(feed.read(found.filename.name, found.offset, found.size), dtype=numpy.uint8)

    utility.LocalTensor.mmap_bytes = mmap_bytes
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
