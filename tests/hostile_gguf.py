"""GGUF files that a stranger could send: each breaks one rule, and each says whom it hurts."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

U32 = struct.Struct("<I").pack
F32, Q4_K = 0, 12


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return text(name) + U32(kind) + value


def string(name: str, value: bytes | str) -> bytes:
    return key(name, 8, text(value))


def number(name: str, value: int) -> bytes:
    return key(name, 4, U32(value))


def array(kind: int, n: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + body


def strings(name: str, values: list[str]) -> bytes:
    return key(name, 9, array(8, len(values), b"".join(map(text, values))))


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = F32, offset: int = 0, n_dims: int | None = None
) -> bytes:
    told = len(shape) if n_dims is None else n_dims
    return text(name) + U32(told) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def gguf(
    *keys: bytes, tensors: tuple[bytes, ...] = (), data: bytes | int = b"", version: int = 3,
    n: tuple[int, int] | None = None, magic: bytes = b"GGUF",
) -> bytes:  # fmt: skip
    n_tensors, n_keys = n or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    body = bytes(data) if isinstance(data, int) else data
    return head + bytes(-len(head) % 32) + body


ARCH = string("general.architecture", "llama")
WIDE = 64
MODEL_KEYS = (
    ARCH, string("general.name", "Fern"), number("llama.block_count", 1), number("llama.context_length", 512),
    number("llama.embedding_length", WIDE), number("llama.attention.head_count", 2),
    strings("tokenizer.ggml.tokens", ["<s>", "</s>", "a", "b"]), number("tokenizer.ggml.bos_token_id", 0),
)  # fmt: skip
MODEL_TENSORS = (tensor("token_embd.weight", (WIDE, 4)), tensor("blk.0.attn_q.weight", (WIDE, 4), offset=1024))
MODEL_DATA = 2048


def model(*more: bytes, drop: str | None = None, data: bytes | int = MODEL_DATA,
          tensors: tuple[bytes, ...] = MODEL_TENSORS) -> bytes:  # fmt: skip
    """A small model that is sound but for what is added; `drop` is a key to leave out."""
    kept = [one for one in MODEL_KEYS if drop is None or not one[8:].startswith(drop.encode())]
    return gguf(*kept, *more, tensors=tensors, data=data)


def template(source: str) -> bytes:
    return model(string("tokenizer.chat_template", source))


@dataclass(frozen=True)
class Case:
    """`build` writes into a folder and returns what to scan. `place` is what the finding must locate: where=…, line=…,
    offset=…, file=…. `danger` names the consumer or the CVE; `shown` what the tests make that consumer do."""

    name: str
    build: Callable[[Path], Path]
    rule: str
    danger: str
    place: dict[str, object]
    shown: str | None = None
    more: tuple[str, ...] = ()


def _file(raw: bytes, name: str = "m.gguf") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder / name

    return build


def case(name: str, raw: bytes, rule: str, danger: str, shown: str | None = None, **place: object) -> Case:
    return Case(name, _file(raw), rule, danger, place, shown)


NAN = np.array([np.nan], "<f4").tobytes()
BIG = 2**62 + 2**61
OLD = "llama.cpp before its CVE fixes"

STRUCTURE = [
    case("empty", b"", "gguf-truncated", "gguf-py", "raises", offset=0),
    case("magic", gguf(ARCH, magic=b"GGML"), "gguf-magic", "gguf-py", "raises", offset=0),
    case("version 0", gguf(ARCH, version=0), "gguf-version", "gguf-py", "raises", offset=4),
    case("version 1", gguf(ARCH, version=1), "gguf-version", "gguf-py", "raises", offset=4),
    case("version of the future", gguf(ARCH, version=9), "gguf-version", "gguf-py", "raises", offset=4),
    case("byte-swapped", gguf(ARCH, version=3 << 24), "gguf-endian", "gguf-py", "raises", offset=4),
    case("tensors without end", gguf(ARCH, n=(2**60, 1)), "gguf-counts", "CVE-2024-21836", "raises", offset=8),
    case("tensors, negative", gguf(ARCH, n=(2**64 - 1, 1)), "gguf-counts", "CVE-2024-21836", "raises", offset=8),
    case("keys without end", gguf(ARCH, n=(0, 2**60)), "gguf-counts", "CVE-2024-23605", "raises", offset=16),
    case("key of 2^63 bytes", gguf(key(b"", 4, U32(1))[8:].join([b"\xff" * 7 + b"\x7f", b""])), "gguf-name",
         "CVE-2024-23496", "raises", offset=24),
    case("empty key", gguf(ARCH, key("", 4, U32(1))), "gguf-name", "gguf-py takes it", "accepts", where="key 1"),
    case("value type", gguf(ARCH, key("a", 13, b"xxxx")), "gguf-value-type", "gguf-py", "raises", where="key 'a'"),
    case("key twice", gguf(ARCH, ARCH), "gguf-duplicate-key", "the last or first one wins by reader (gguf-py raises)",
         "raises", where="key 'general.architecture'"),
    case("alignment 0", gguf(ARCH, number("general.alignment", 0)), "gguf-alignment", "gguf-py", "raises",
         where="key 'general.alignment'"),
    case("alignment 48", gguf(ARCH, number("general.alignment", 48)), "gguf-alignment", "gguf-py", "raises",
         where="key 'general.alignment'"),
    case("alignment of another type", gguf(ARCH, key("general.alignment", 10, bytes(8))), "gguf-alignment",
         "llama.cpp aborts (GGML_ASSERT in gguf_get_val_u32) where the type is not asked first", "raises",
         where="key 'general.alignment'"),
    case("string of 2^63 bytes", gguf(ARCH, key("a", 8, b"\xff" * 7 + b"\x7f")), "gguf-length", "CVE-2024-23496",
         "raises", where="key 'a'"),
    case("array without end", gguf(ARCH, key("a", 9, array(4, 2**61))), "gguf-length", "CVE-2024-21825", "raises",
         where="key 'a'"),
    case("strings without end", gguf(ARCH, key("a", 9, array(8, 2**61))), "gguf-length", "CVE-2024-21825", "raises",
         where="key 'a'"),
    case("array of arrays", gguf(ARCH, key("a", 9, array(9, 1, array(4, 1, U32(1))))), "gguf-value-type",
         "gguf-py takes it, the engine does not", "accepts", where="key 'a'"),
    case("arrays 2,000 deep", gguf(ARCH, key("a", 9, array(9, 1) * 2000 + array(4, 1, U32(1)))), "gguf-value-type",
         "gguf-py recurses once a level", "raises", where="key 'a'"),
    case("bool of 7", gguf(ARCH, key("a", 7, b"\x07")), "gguf-bool", "undefined behaviour in a C++ bool; gguf-py takes it",
         "accepts", where="key 'a'"),
    case("text that is no UTF-8", gguf(ARCH, string("a", b"\xff\xfe")), "gguf-text", "gguf-py raises where it is read",
         "raises", where="key 'a'"),
    case("tensor name of 64 bytes", gguf(ARCH, tensors=(tensor("n" * 64, (8,)),), data=32), "gguf-name",
         "GGML_MAX_NAME of the engine; gguf-py takes it", "accepts", where="tensor 0"),
    case("5 dimensions", gguf(ARCH, tensors=(tensor("t", (1, 1, 1, 1, 1)),), data=32), "gguf-dims",
         "ne[4] of the engine written beyond; gguf-py takes it", "accepts", where="tensor 't'"),
    case("2^32 - 1 dimensions", gguf(ARCH, tensors=(tensor("t", (1,), n_dims=2**32 - 1),), data=32), "gguf-dims",
         "CVE-2024-21802", "raises", where="tensor 't'"),
    case("dimension 0", gguf(ARCH, tensors=(tensor("t", (0, 4)),), data=32), "gguf-shape", "gguf-py takes it", "accepts",
         where="tensor 't'"),
    case("dimension -1", gguf(ARCH, tensors=(tensor("t", (2**64 - 1,)),), data=32), "gguf-shape", "CVE-2024-21802",
         "raises", where="tensor 't'"),
    case("a product that overflows", gguf(ARCH, tensors=(tensor("t", (1152, 2**42 + 1, 2**20)),), data=32), "gguf-shape",
         "CVE-2026-33298", "raises", where="tensor 't'"),
    case("bytes that overflow", gguf(ARCH, tensors=(tensor("t", (2**31, 2**31)),), data=32), "gguf-overflow",
         "CVE-2026-33298", "raises", where="tensor 't'"),
    case("sizes whose sum overflows", gguf(ARCH, tensors=(
        tensor("t", (2**30, 2**30)), tensor("u", (2**30, 2**30), offset=2**62), tensor("v", (8,), offset=2**63)), data=32),
         "gguf-overflow", "CVE-2025-53630", "raises", where="tensor 'u'"),
    case("memory that overflows", gguf(ARCH, tensors=(
        tensor("t", (2**30, 2**30)), tensor("u", (2**30, 2**30 - 8), offset=2**62)), data=32),
         "gguf-data-end", "CVE-2026-27940", "raises", where="tensor 't'"),
    case("tensor type 99", gguf(ARCH, tensors=(tensor("t", (8,), 99),), data=32), "gguf-tensor-type", "gguf-py", "raises",
         where="tensor 't'"),
    case("tensor type -1", gguf(ARCH, tensors=(tensor("t", (8,), 2**32 - 1),), data=32), "gguf-tensor-type",
         "llama.cpp read its type table out of bounds (pull 19856)", "raises", where="tensor 't'"),
    case("half a block", gguf(ARCH, tensors=(tensor("t", (100,), Q4_K),), data=96), "gguf-shape", "gguf-py", "raises",
         where="tensor 't'"),
    case("unaligned data", gguf(ARCH, tensors=(tensor("t", (8,)), tensor("u", (8,), offset=33)), data=96), "gguf-offset",
         "gguf-py takes it", "accepts", where="tensor 'u'"),
    case("overlapping data", gguf(ARCH, tensors=(tensor("t", (8,)), tensor("u", (8,), offset=0)), data=96), "gguf-offset",
         "gguf-py takes it: one tensor's bytes are another's", "accepts", where="tensor 'u'"),
    case("a gap in the data", gguf(ARCH, tensors=(tensor("t", (8,)), tensor("u", (8,), offset=64)), data=128),
         "gguf-offset", "gguf-py takes it: bytes that nobody names", "accepts", where="tensor 'u'"),
    case("data far outside", gguf(ARCH, tensors=(tensor("t", (8,), offset=2**40),), data=32), "gguf-offset",
         "CVE-2026-7482", "raises", where="tensor 't'"),
    case("tensor twice", gguf(ARCH, tensors=(tensor("t", (8,)), tensor("t", (8,), offset=32)), data=64),
         "gguf-duplicate-tensor", "gguf-py", "raises", where="tensor 't'"),
    case("data cut off", model(data=100), "gguf-data-end", "CVE-2026-7482", "raises", where="tensor 'token_embd.weight'"),
    case("ESC in a key", gguf(ARCH, string("a\x1b[2J", "x")), "terminal", "a terminal, by gguf-dump", "escapes",
         where="key 1"),
    case("OSC 52 in the name", model(string("general.author", "\x1b]52;c;aGk=\a")), "terminal",
         "a terminal: OSC 52 writes its clipboard", "escapes", where="key 'general.author'"),
    case("CSI in one byte", model(string("general.author", "\x9b2J")), "terminal", "a terminal: C1", "escapes",
         where="key 'general.author'"),
    case("carriage return", model(string("general.author", "evil\rgood")), "terminal", "a terminal: overwritten",
         "escapes", where="general.author"),
    case("bidi in the name", model(string("general.author", "\u202efdp.exe")), "hidden-text", "CVE-2021-42574", "escapes",
         where="general.author"),
    case("tag characters", model(string("general.author", "A" + "".join(chr(0xE0000 + ord(c)) for c in "obey"))),
         "hidden-text", "a reader who sees nothing, and a model that reads it", "escapes", where="general.author"),
    case("an address that is none", model(string("general.url", "javascript:alert(1)")), "metadata-url",
         "a page that shows it as a link", None, where="general.url"),
    case("256 KB behind the tensors", model() + b"MZ" + bytes(2**18), "trailing", "a file of two formats: gguf-py takes it",
         "accepts", offset=2560),
    case("a token that is none", model(number("tokenizer.ggml.eos_token_id", 10**6)), "token-id",
         "an index beyond the vocabulary; gguf-py takes it", "accepts", where="tokenizer.ggml.eos_token_id"),
    case("more tokens than rows", model(strings("tokenizer.ggml.tokens", list("abcdef")), drop="tokenizer.ggml.tokens"),
         "vocabulary", "rows beyond the embedding; gguf-py takes it", "accepts", where="tokenizer.ggml.tokens"),
    case("2^31 layers", model(number("llama.block_count", 2**31), drop="llama.block_count"), "claims",
         "tables by layer: 513 and more abort the engine; gguf-py takes it", "accepts", where="llama.block_count"),
    case("2^31 tokens of context", model(number("llama.context_length", 2**31), drop="llama.context_length"), "claims",
         "llama-server allocates its cache for the model's own context; gguf-py takes it", "accepts",
         where="llama.context_length"),
    case("no heads", model(number("llama.attention.head_count", 0), drop="llama.attention.head_count"), "claims",
         "a division by zero; gguf-py takes it", "accepts", where="llama.attention.head_count"),
    case("another width", model(number("llama.embedding_length", 4096), drop="llama.embedding_length"), "claims",
         "tensors of another shape than claimed; gguf-py takes it", "accepts", where="llama.embedding_length"),
    case("no architecture", gguf(tensors=(tensor("t", (8,)),), data=32), "architecture", "gguf-py takes it", "accepts",
         where="general.architecture"),
    case("no tensors", gguf(*MODEL_KEYS), "tensors", "gguf-py takes it", "accepts"),
    case("a string of 2 MiB", model(string("general.summary", "x" * 2**21)), "metadata-size",
         "gguf-dump prints it whole; scanners cut it off", "accepts", where="general.summary"),
    case("NaN", model(data=bytes(512) + NAN + bytes(1532)), "not-finite", "every answer is NaN; gguf-py takes it", "accepts",
         where="tensor 'token_embd.weight'"),
    case("an infinite scale", model(tensors=(MODEL_TENSORS[0], tensor("blk.0.attn_q.weight", (256,), Q4_K, 1024)),
                                    data=bytes(1024) + b"\x00\x7c" + bytes(142)), "not-finite",
         "every answer is NaN; gguf-py takes it", "accepts", where="tensor 'blk.0.attn_q.weight'"),
]  # fmt: skip


def _split(change: Callable[[Path], None]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        for i, (name, data) in enumerate((("token_embd.weight", 1024), ("blk.0.attn_q.weight", 1024))):
            keys = [*(MODEL_KEYS if i == 0 else ()), key("split.no", 2, struct.pack("<H", i)),
                    key("split.count", 2, struct.pack("<H", 2)), key("split.tensors.count", 5, U32(2))]  # fmt: skip
            path = folder / f"m-{i + 1:05d}-of-00002.gguf"
            path.write_bytes(gguf(*keys, tensors=(tensor(name, (WIDE, 4)),), data=data))
        change(folder)
        return folder / "m-00001-of-00002.gguf"

    return build


def _second(raw: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "m-00002-of-00002.gguf"
        path.unlink()
        if raw is not None:
            path.write_bytes(raw)

    return change


def _twice(folder: Path) -> None:
    second = folder / "m-00002-of-00002.gguf"
    second.write_bytes(second.read_bytes().replace(b"blk.0.attn_q.weight", b"token_embd.weight\0\0"))


def _shard(no: int, count: int, name: str) -> bytes:
    keys = (key("split.no", 2, struct.pack("<H", no)), key("split.count", 2, struct.pack("<H", count)))
    return gguf(*keys, tensors=(tensor(name, (WIDE, 4)),), data=1024)


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.gguf")
    return folder


def _link(folder: Path) -> Path:
    (folder / "m.gguf").symlink_to("/etc/passwd")
    return folder


PLACES = [
    Case("a shard is missing", _split(_second(None)), "gguf-split", "llama.cpp ends at it", {"file": "m-00002-of-00002.gguf"}),
    Case("a shard of another model", _split(_second(_shard(0, 2, "x"))), "gguf-split", "tensors of another model",
         {"file": "m-00002-of-00002.gguf"}),
    Case("shards that count otherwise", _split(_second(_shard(1, 9, "x"))), "gguf-split", "llama.cpp ends at it",
         {"file": "m-00002-of-00002.gguf"}),
    Case("a tensor in two shards", _split(_second(_shard(1, 2, "token_embd.weight"))), "gguf-split",
         "which one is loaded depends on the reader", {"where": "token_embd.weight"}),
    Case("60,000 shards", _file(gguf(*MODEL_KEYS, key("split.count", 2, struct.pack("<H", 60_000)), tensors=MODEL_TENSORS,
                                     data=MODEL_DATA)), "gguf-split", "llama.cpp opens 60,000 names", {"file": "m.gguf"}),
    Case("a shard cut off", _split(lambda folder: os.truncate(folder / "m-00002-of-00002.gguf", 300)), "gguf-data-end",
         "CVE-2026-7482", {"file": "m-00002-of-00002.gguf"}),
    Case("the second shard alone", lambda folder: (_split(lambda f: (f / "m-00001-of-00002.gguf").unlink())(folder), folder)[1],
         "gguf-split", "llama.cpp ends at it", {"file": "m-00001-of-00002.gguf"}),
    Case("a FIFO", _fifo, "path", "a loader waits for ever", {"file": "m.gguf"}),
    Case("a link out of the folder", _link, "path", "what is served or copied is another file", {"file": "m.gguf"}),
]  # fmt: skip
