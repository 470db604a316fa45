"""A GGUF of raw blocks: any type, any bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantplan.ggml_types import ggml_types
from quantplan.pipeline import tensor_data

HALF_INF = 0x7C00


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


def blocks(name: str, n: int = 5) -> np.ndarray:
    """n blocks whose floats are all one or nought."""
    return np.zeros((n, ggml_types()[name].type_size), np.uint8)


def damage(name: str, raw: np.ndarray, i: int) -> None:
    """Makes the last float of block i infinite, or not a number where the type has no infinity."""
    if name in tensor_data.HALF_SCALES:
        at = tensor_data.HALF_SCALES[name][-1]
        raw[i, at : at + 2] = np.frombuffer(np.uint16(HALF_INF).tobytes(), np.uint8)
    elif name == "IQ1_M":
        for k, nibble in enumerate((0x0, 0x0, 0xC, 0x7)):  # 0x7c00, top nibbles of four words
            raw[i, 48 + 2 * k + 1] = nibble << 4
    elif name == "MXFP4":
        raw[i, 0] = 0xFF
    elif name == "NVFP4":
        raw[i, 3] = 0x7F
    else:
        value = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "Q8_K": np.float32}.get(name)
        bits = np.uint16(0x7FC0).tobytes() if value is None else value(np.nan).tobytes()
        raw[i, : len(bits)] = np.frombuffer(bits, np.uint8)
