"""A GGUF of raw blocks: any type, any bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantplan.ggml_types import ggml_types


def write_raw_gguf(path: Path, tensors: Sequence[tuple[str, str, np.ndarray]]) -> None:
    """Tensors of one row each, of blocks of shape (n, type_size), 32-byte aligned."""
    infos, data = b"", b""
    for name, type_name, blocks in tensors:
        layout = ggml_types()[type_name]
        data += bytes(-len(data) % 32)
        infos += struct.pack("<Q", len(name)) + name.encode()
        infos += struct.pack("<IQIQ", 1, len(blocks) * layout.block_size, layout.value, len(data))
        data += blocks.tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
