"""A GGUF header is untrusted input: every refusal names key or tensor, and the offset."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantplan.errors import BadModelFile, QuantplanError
from quantplan.model.gguf_header import ArrayInfo, GgufHeader, parse_gguf_header, read_gguf_header


class Bytes:
    """A ByteSource of bytes in memory, in pieces of any size."""

    name = "m.gguf"

    def __init__(self, content: bytes, *, piece: int = 64, size: int | None = -1) -> None:
        self.content, self.piece = content, piece
        self.size: int | None = len(content) if size == -1 else size

    def read(self, offset: int, at_least: int, *, certain: int) -> bytes:
        return self.content[offset : offset + max(at_least, self.piece)]


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    *keys: bytes, tensors: tuple[bytes, ...] = (), data: int = 0, version: int = 3, n: tuple[int, int] | None = None
) -> bytes:
    n_tensors, n_keys = n or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data) if tensors else head


ARCH = key("general.architecture", 8, text("llama"))
U32 = struct.Struct("<I").pack


def array(kind: int, n: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + body


GOOD = gguf(
    ARCH, key("general.alignment", 4, U32(32)), key("a.list", 9, array(5, 2, struct.pack("<ii", 1, -1))),
    key("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("") + text("ccc"))),
    tensors=(tensor("t", (32, 2)), tensor("u", (256,), 12, 256)), data=256 + 144,
)  # fmt: skip


def parse(content: bytes, **more: int) -> GgufHeader:
    return parse_gguf_header(Bytes(content, **more))


def test_the_good_one_reads_in_pieces_of_any_size() -> None:
    for piece in (1, 2, 7, 8, 9, 31, 64, 10_000):
        header = parse(GOOD, piece=piece)
        assert header.metadata["tokenizer.ggml.tokens"] == ArrayInfo(type_name="STRING", n=3)
        assert [t.n_bytes for t in header.tensors] == [256, 144]


def test_version_2_reads_as_version_3() -> None:
    assert parse(gguf(ARCH, version=2)).version == 2


CASES: list[tuple[str, bytes, str]] = [
    ("empty file", b"", r"m.gguf: header: needs 4 bytes, but the file has 0 bytes left \(at byte 0\)"),
    ("magic", b"PK\x03\x04" + bytes(40), r"header: this is not a GGUF file: it starts with 'PK\?\?' \(at byte 0\)"),
    ("version 1", gguf(ARCH, version=1), r"GGUF version 1 is not supported \(2 and 3 are\) \(at byte 4\)"),
    ("version 0", gguf(ARCH, version=0), r"GGUF version 0 is not supported"),
    ("version 4", gguf(ARCH, version=4), r"GGUF version 4 is not supported"),
    ("big-endian", gguf(ARCH, version=3 << 24), r"header: this is a big-endian GGUF file"),
    ("keys against the file", gguf(ARCH, n=(0, 10**9)), r"header: declares 1,000,000,000 keys, but the file has"),
    ("tensors against the file", gguf(ARCH, n=(2**62, 1)), r"header: declares 4,611,686,018,427,387,904 tensors, but"),
    (
        "fewer keys than said",
        gguf(ARCH, n=(0, 2)),
        r"key 1: needs 8 bytes, but the file has 0 bytes left \(at byte 69\)",
    ),
    ("empty key", gguf(key("", 4, U32(1))), r"key 0: its name has 0 bytes, not 1 to 65,535 \(at byte 24\)"),
    ("key of 2^63", gguf(b"\xff" * 20), r"key 0: its name has 18,446,744,073,709,551,615 bytes"),
    ("key length", gguf(struct.pack("<Q", 5000) + b"abcdefgh"), r"key 0: its name has 5,000 bytes, but the file has 8"),
    ("key not UTF-8", gguf(key(b"\xff\xfe", 4, U32(1))), r"key 0: its name is not UTF-8 \(at byte 24\)"),
    ("key with ESC", gguf(key("a\x1b[2J", 4, U32(1))), r"key 0: its name 'a\\x1b\[2J' has control characters"),
    ("key twice", gguf(ARCH, ARCH), r"key 'general.architecture': is there twice \(at byte 69\)"),
    ("value type", gguf(key("a", 13, b"x")), r"key 'a': has the unknown value type 13 \(at byte 33\)"),
    ("bool of 2", gguf(key("a", 7, b"\2")), r"key 'a': is a BOOL with the value 2"),
    ("bools of 2", gguf(key("a", 9, array(7, 2, b"\1\2"))), r"key 'a': is an array of BOOL with the value 2"),
    ("string length", gguf(key("a", 8, struct.pack("<Q", 99))), r"key 'a': a string of 99 bytes, but the file has 0"),
    ("string of 2^64", gguf(key("a", 8, b"\xff" * 8)), r"key 'a': a string of 18,446,744,073,709,551,615 bytes"),
    ("text not UTF-8", gguf(key("a", 8, text(b"ab\xff"))), r"key 'a': its text is not UTF-8 \(at byte 47\)"),
    (
        "text with ESC",
        gguf(key("a", 8, text("é\x1b]0;x"))),
        r"key 'a': its text has the control character U\+001B \(at byte 47\)",
    ),
    ("text with CSI", gguf(key("a", 8, text("\x9b2J"))), r"key 'a': its text has the control character U\+009B"),
    (
        "texts with BEL",
        gguf(key("a", 9, array(8, 1, text("\a")))),
        r"key 'a': its text has the control character U\+0007",
    ),
    ("array of arrays", gguf(key("a", 9, array(9, 1, array(4, 0)))), r"key 'a': is an array of arrays"),
    ("array type", gguf(key("a", 9, array(77, 1))), r"key 'a': is an array of the unknown value type 77"),
    (
        "array length",
        gguf(key("a", 9, array(4, 2**40))),
        r"key 'a': an array of 1,099,511,627,776 UINT32, but the file has",
    ),
    (
        "array of 2^64",
        gguf(key("a", 9, array(10, 2**64 - 1))),
        r"key 'a': an array of 18,446,744,073,709,551,615 UINT64",
    ),
    ("strings length", gguf(key("a", 9, array(8, 2**40))), r"key 'a': an array of 1,099,511,627,776 STRING, but"),
    (
        "one token too long",
        gguf(key("tokenizer.ggml.tokens", 9, array(8, 2, text("a") + struct.pack("<Q", 10**6) + b"xyz"))),
        r"key 'tokenizer.ggml.tokens': a string of 1,000,000 bytes, but the file has 3 bytes left \(at byte 78\)",
    ),
    (
        "one token of 2^64",
        gguf(key("tokenizer.ggml.tokens", 9, array(8, 2, text("a") + b"\xff" * 8))),
        r"key 'tokenizer.ggml.tokens': a string of 18,446,744,073,709,551,615 bytes",
    ),
    ("alignment 0", gguf(key("general.alignment", 4, U32(0))), r"key 'general.alignment': 0 is not a power of two"),
    ("alignment 48", gguf(key("general.alignment", 4, U32(48))), r"key 'general.alignment': 48 is not a power of two"),
    (
        "alignment of another type",
        gguf(key("general.alignment", 10, bytes(8))),
        r"'general.alignment': is not a UINT32",
    ),
    (
        "tensor twice",
        gguf(tensors=(tensor("t", (8,)), tensor("t", (8,), 0, 32)), data=99),
        r"tensor 't': is there twice",
    ),
    ("tensor name", gguf(tensors=(tensor("t" * 64, (8,)),), data=99), r"tensor 0: its name has 64 bytes, not 1 to 63"),
    ("tensor with NUL", gguf(tensors=(tensor("a\0b", (8,)),), data=99), r"tensor 0: its name 'a\\x00b' has control"),
    ("5 dimensions", gguf(tensors=(tensor("t", (1,) * 5),), data=99), r"tensor 't': has 5 dimensions, not 1 to 4"),
    ("0 dimensions", gguf(tensors=(tensor("t", ()) + bytes(9),), data=99), r"tensor 't': has 0 dimensions"),
    ("dimension 0", gguf(tensors=(tensor("t", (8, 0)),), data=99), r"tensor 't': has the impossible shape \(8, 0\)"),
    ("dimension -1", gguf(tensors=(tensor("t", (2**64 - 1,)),), data=99), r"tensor 't': has the impossible shape"),
    ("product", gguf(tensors=(tensor("t", (2**32, 2**32)),), data=99), r"tensor 't': has the impossible shape"),
    ("size", gguf(tensors=(tensor("t", (2**62,)),), data=99), r"tensor 't': ends at byte 18,446,744,073,709,551,616"),
    ("type", gguf(tensors=(tensor("t", (8,), 4),), data=99), r"tensor 't': has the unknown ggml type 4 "),
    (
        "rows",
        gguf(tensors=(tensor("t", (255, 256), 12),), data=99),
        r"tensor 't': rows of 255 are no whole number of Q4_K",
    ),
    ("unaligned", gguf(tensors=(tensor("t", (8,), 0, 7),), data=99), r"tensor 't': its data at 7 is not aligned to 32"),
    (
        "overlap",
        gguf(tensors=(tensor("t", (16,)), tensor("u", (8,), 0, 32)), data=99),
        r"tensor 'u': its data at 32 overlaps the tensor before, which ends at 64",
    ),
    ("gap", gguf(tensors=(tensor("t", (8,)), tensor("u", (8,), 0, 64)), data=999), r"tensor 'u': .* leaves a gap"),
    (
        "out of range",
        gguf(tensors=(tensor("t", (8,)), tensor("u", (1024,), 0, 32)), data=64),
        r"tensor 'u': its data ends beyond the file: 4,224 bytes are needed, the file has 160",
    ),
]


@pytest.mark.parametrize(("content", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_with_its_name_and_offset(content: bytes, expected: str) -> None:
    with pytest.raises(BadModelFile, match=expected) as caught:
        parse(content)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(content)


def test_truncated_anywhere() -> None:
    for cut in range(len(GOOD)):
        with pytest.raises(BadModelFile):
            parse(GOOD[:cut])


def test_truncated_anywhere_where_the_size_is_unknown() -> None:
    end = parse(GOOD).data_offset
    for cut in range(end - 40):
        with pytest.raises(BadModelFile, match="but the file ends"):
            parse_gguf_header(Bytes(GOOD[:cut], size=None))


@pytest.mark.parametrize("piece", [64, 4096])
def test_huge_claims_in_a_file_of_unknown_size_are_refused_early(piece: int) -> None:
    """A server that does not tell the size must not make us read for hours."""
    endless = gguf(key("tokenizer.ggml.tokens", 9, array(8, 2**62)))
    with pytest.raises(BadModelFile, match="makes a header of more than 256 MiB"):
        parse_gguf_header(Bytes(endless, size=None, piece=piece))


def test_what_is_kept_is_bounded() -> None:
    long = key("tokenizer.huggingface.json", 8, text(b"x" * 2_000_000))
    many = [key(f"k{i}", 8, text(b"y" * 1_000_000)) for i in range(8)]
    header = parse(gguf(long, *many, key("big", 9, array(4, 5000, bytes(20_000)))))
    assert header.metadata["tokenizer.huggingface.json"] == ArrayInfo(type_name="UINT8", n=2_000_000)
    assert header.metadata["big"] == ArrayInfo(type_name="UINT32", n=5000)
    assert sum(len(v) for v in header.metadata.values() if isinstance(v, str)) <= 4 * 2**20


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), os.mkfifo, lambda p: None, lambda p: p.write_bytes(b"")])
def test_what_is_no_file_is_refused(make: object, tmp_path: Path) -> None:
    make(tmp_path / "x.gguf")  # type: ignore[operator]
    with pytest.raises(BadModelFile):
        read_gguf_header(tmp_path / "x.gguf")


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    def shard(no: int, count: int, *tensors: bytes, total: int = 2) -> bytes:
        keys = [key("split.no", 2, struct.pack("<H", no)), key("split.count", 2, struct.pack("<H", count))]
        return gguf(*keys, key("split.tensors.count", 5, struct.pack("<i", total)), tensors=tensors, data=64)

    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    for content, expected in (
        (shard(1, 2, tensor("t", (8,))), r"m-00002-of-00002.gguf|tensor 't' is in two shards"),
        (shard(0, 2, tensor("u", (8,))), r"m-00002-of-00002.gguf: does not say that it is shard 2 of 2"),
        (shard(1, 3, tensor("u", (8,))), r"m-00002-of-00002.gguf: does not say that it is shard 2 of 2"),
        (b"GGUF", r"m-00002-of-00002.gguf: shard 2 of 2: header: needs 4 bytes"),
    ):
        first.write_bytes(shard(0, 2, tensor("t", (8,))))
        second.write_bytes(content)
        with pytest.raises(BadModelFile, match=expected):
            read_gguf_header(first)
    first.write_bytes(shard(0, 2, tensor("t", (8,)), total=3))
    second.write_bytes(shard(1, 2, tensor("u", (8,))))
    with pytest.raises(BadModelFile, match=r"the shards have 2 tensors, split\.tensors\.count says 3"):
        read_gguf_header(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(BadModelFile, match="is one of 2 shards, but its name does not end in -00001-of-00002"):
        read_gguf_header(tmp_path / "renamed.gguf")


MUTATION = st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9))


@settings(
    max_examples=1500, deadline=1000, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.lists(MUTATION, max_size=6), st.integers(0, len(GOOD)), st.sampled_from([7, 64, 4096]))
@example([(24, b"\xff" * 9)], len(GOOD), 7)
def test_a_mutated_header_is_read_or_refused(mutations: list[tuple[int, bytes]], end: int, piece: int) -> None:
    content = bytearray(GOOD)
    for at, new in mutations:
        content[at : at + len(new)] = new
    for size in (-1, None):
        try:
            header = parse_gguf_header(Bytes(bytes(content[:end]), piece=piece, size=size))
        except QuantplanError as error:
            assert str(error).isprintable()
        else:
            assert all(t.n_bytes > 0 for t in header.tensors)
