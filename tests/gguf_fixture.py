"""Small GGUF files, written by gguf.GGUFWriter."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

from quantplan.units import MIB


def write_gguf(path: Path, *, split_max_tensors: int = 0) -> None:
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 65_000)
    writer.add_int16("t.i16", -30_000)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -2_000_000_000)
    writer.add_uint64("t.u64", 2**63)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 0.5)
    writer.add_float64("t.f64", 0.1)
    writer.add_bool("t.yes", True)
    writer.add_bool("t.no", False)
    writer.add_string("t.text", "déjà\n{%- if x %}")
    writer.add_array("t.flags", [True, False, True])
    writer.add_array("t.heads", [8, 8, 0])
    writer.add_array("t.words", ["a", "", "ccc"])
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "\x1b", "x" * 300_000, "é"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(5, dtype=np.float32))
    writer.add_tensor(
        "blk.0.ffn_up.weight", np.zeros((2, 144 // 4), dtype=np.uint32).view(np.uint8),
        raw_dtype=gguf.GGMLQuantizationType.Q4_K,
    )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary_gguf(path: Path, *, n_tokens: int, n_merges: int, token_bytes: int) -> bytes:
    """A header with a vocabulary of that size; its one tensor of 16 GiB is never written."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "x")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    head = path.read_bytes()
    keys = [head[24:]]
    for key, n, size in (("tokens", n_tokens, token_bytes), ("merges", n_merges, 2 * token_bytes)):
        name = f"tokenizer.ggml.{key}".encode()
        keys.append(struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, 8, n))
        keys.append((struct.pack("<Q", size) + b"x" * size) * n)
        scores = b"tokenizer.ggml.scores" if key == "tokens" else b"tokenizer.ggml.token_type"
        keys.append(struct.pack("<Q", len(scores)) + scores + struct.pack("<IIQ", 9, 6, n_tokens) + bytes(4 * n_tokens))
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 4096, MIB, 0, 0)
    counts = struct.pack("<IQQ", 3, 1, struct.unpack_from("<Q", head, 16)[0] + 4)
    raw = b"GGUF" + counts + b"".join(keys) + tensor
    return raw + bytes(-len(raw) % 32)
