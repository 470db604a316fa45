"""GGUF files without weights: a right header over a hole, which every llama.cpp tool accepts.

The layout is that of ggml/src/gguf.cpp, gguf_write_out() (commit 0c1e570), version 3, little endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from quantplan.errors import BadValue
from quantplan.ggml_types import ggml_types
from quantplan.model.facts import TensorFacts
from quantplan.units import pad

ALIGNMENT_BYTES = 32  # GGUF_DEFAULT_ALIGNMENT, ggml/include/gguf.h
Vocab = Literal["none", "synthetic"]

# enum gguf_type, ggml/include/gguf.h
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64 = 4, 5, 6, 7, 8, 9, 10, 11
_SIGNED = frozenset({"split.tensors.count"})  # the loader reads it as int32
_VOCABULARY = "tokenizer."


def write_weightless(
    path: Path, metadata: Mapping[str, object], tensors: Sequence[TensorFacts], *, vocab: Vocab = "none"
) -> int:
    """Writes the header and truncates the file to its full length; returns that length in bytes.

    vocab: "none" names no tokenizer, which planning and quantizing accept; "synthetic" writes a SentencePiece
    vocabulary of the model's size, with which completion works too. The tokenizer of `metadata` is replaced.
    Put the file on a disk: on tmpfs a hole is allocated when it is read.
    """
    header = header_of(metadata, tensors, vocab=vocab)
    total = len(header) + sum(pad(tensor_bytes(tensor), ALIGNMENT_BYTES) for tensor in tensors)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(total)
        file.flush()
        os.fsync(file.fileno())
    return total


def tensor_bytes(tensor: TensorFacts) -> int:
    """Bytes of one tensor: whole rows of its type."""
    kind = ggml_types().get(tensor.type_name)
    if kind is None:
        raise BadValue(what=f"type of tensor {tensor.name}", value=tensor.type_name, why="is no ggml type")
    row = tensor.shape[0] if tensor.shape else 1
    return kind.row_bytes(row) * (tensor.n_elements // row if row else 0)


def header_of(metadata: Mapping[str, object], tensors: Sequence[TensorFacts], *, vocab: Vocab = "none") -> bytes:
    """Everything before the tensor data, padded."""
    values = {key: value for key, value in metadata.items() if not key.startswith(_VOCABULARY)}
    values.pop("general.alignment", None)
    arch = str(values.get("general.architecture", ""))
    n_vocab = values.get(f"{arch}.vocab_size") or _n_vocab(tensors)
    values[f"{arch}.vocab_size"] = n_vocab
    kinds = next((t.shape[1] for t in tensors if t.name == "token_types.weight" and len(t.shape) > 1), 0)
    if kinds:  # an encoder is not loaded without
        values["tokenizer.ggml.token_type_count"] = kinds
    parts = [_key_value(key, value) for key, value in values.items() if _writable(value)]
    parts += _no_vocabulary() if vocab == "none" else _synthetic_vocabulary(int(str(n_vocab)))
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(parts)) + b"".join(parts) + _infos(tensors)
    return body.ljust(pad(len(body), ALIGNMENT_BYTES), b"\0")


def _n_vocab(tensors: Sequence[TensorFacts]) -> int:
    return next((t.shape[1] for t in tensors if t.name == "token_embd.weight" and len(t.shape) > 1), 0)


def _infos(tensors: Sequence[TensorFacts]) -> bytes:
    types, parts, offset = ggml_types(), [], 0
    for tensor in tensors:
        n_bytes = tensor_bytes(tensor)
        shape = tensor.shape
        parts.append(_text(tensor.name))
        parts.append(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, types[tensor.type_name].value, offset))
        offset += pad(n_bytes, ALIGNMENT_BYTES)
    return b"".join(parts)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _writable(value: object) -> bool:
    """Scalars and lists of scalars; what a reader left out (an array it did not build) is left out here too."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(v, (bool, int, float, str)) for v in value)
    return isinstance(value, (bool, int, float, str))


def _key_value(key: str, value: object) -> bytes:
    if isinstance(value, (list, tuple)):
        kind = _kind(value)
        items = b"".join(_value(kind, item) for item in value)
        return _text(key) + struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    kind = _I32 if key in _SIGNED else _kind((value,))
    return _text(key) + struct.pack("<I", kind) + _value(kind, value)


def _kind(values: Iterable[object]) -> int:
    """The type that holds them all: the engine reads counts as uint32, or int32 where one is negative."""
    items = list(values)
    if all(isinstance(v, bool) for v in items):
        return _BOOL
    if any(isinstance(v, str) for v in items):
        return _STRING
    if any(isinstance(v, float) for v in items):
        return _F32
    numbers = [int(str(v)) for v in items if not isinstance(v, bool)]
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low < 0:
        return _I32 if low >= -(2**31) and high < 2**31 else _I64
    return _U32 if high < 2**32 else _U64


_FORMATS = {_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?", _U64: "<Q", _I64: "<q"}


def _value(kind: int, value: object) -> bytes:
    return _text(str(value)) if kind == _STRING else struct.pack(_FORMATS[kind], value)


def _no_vocabulary() -> list[bytes]:
    return [_key_value("tokenizer.ggml.model", "no_vocab")]


def _synthetic_vocabulary(n_vocab: int) -> list[bytes]:
    """A SentencePiece vocabulary: unknown, begin, end, the 256 bytes, and made-up pieces up to the size."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [f"\u2581t{i}" for i in range(len(names), n_vocab)]
    names = names[: max(n_vocab, 0)]
    types = ([2, 3, 3] + [6] * 256 + [1] * max(0, n_vocab - 259))[: len(names)]  # enum llama_token_type
    return [
        _key_value("tokenizer.ggml.model", "llama"),
        _key_value("tokenizer.ggml.pre", "default"),
        _text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", _ARRAY, _STRING, len(names))
        + b"".join(_text(name) for name in names),
        _text("tokenizer.ggml.scores")
        + struct.pack("<IIQ", _ARRAY, _F32, len(names))
        + struct.pack(f"<{len(names)}f", *(-float(i) for i in range(len(names)))),
        _text("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", _ARRAY, _I32, len(names))
        + struct.pack(f"<{len(names)}i", *types),
        _key_value("tokenizer.ggml.bos_token_id", 1),
        _key_value("tokenizer.ggml.eos_token_id", 2),
        _key_value("tokenizer.ggml.unknown_token_id", 0),
        _key_value("tokenizer.ggml.add_bos_token", True),
    ]
