"""Reads mutated GGUF headers until something other than a QuantplanError happens, takes over 1 s or over 64 MB.

    python scripts/fuzz_gguf_header.py [--n 1000000] [--seed 1] [--keep FILE]
    python scripts/fuzz_gguf_header.py --atheris FOLDER [--seconds 300]   coverage-guided, where atheris is installed

Each round takes one of several good headers and flips, cuts, repeats, splices or overwrites parts of it, mostly with
values that break parsers. Prints a summary; exit status 1 and the culprit in --keep on a failure.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from pathlib import Path

from quantplan.errors import QuantplanError
from quantplan.model.gguf_header import parse_gguf_header

MAX_SECONDS, MAX_BYTES = 1.0, 64 * 1000 * 1000
NASTY = [struct.pack("<Q", n) for n in (0, 1, 7, 8, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63,
                                        2**64 - 8, 2**64 - 1)]  # fmt: skip
NASTY += [struct.pack("<I", n) for n in (*range(14), 31, 42, 43, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]
NASTY += [b"\x1b[2J", b"\x00", b"\xff\xfe", b"\xc2\x9b", b"GGUF"]


class Bytes:
    """A byte source in memory. `size` None is a server that does not tell it."""

    name = "fuzzed.gguf"

    def __init__(self, content: bytes, *, piece: int, size: int | None) -> None:
        self._content, self._piece, self.size = content, piece, size

    def read(self, offset: int, at_least: int, *, certain: int) -> bytes:
        return self._content[offset : offset + max(at_least, self._piece)]


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _model(n_layer: int, n_tokens: int, *, split: bool = False) -> bytes:
    """A good header with every value type, token arrays and the tensors of n_layer layers."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    keys = [_key(b"general.architecture", 8, _text(b"llama")), _key(b"general.alignment", 4, struct.pack("<I", 32))]
    keys += [_key(f"x.{kind}".encode(), kind, struct.pack(f"<{code}", 3)) for kind, code in scalars.items()]
    keys += [
        _key(f"y.{kind}".encode(), 9, struct.pack(f"<IQ3{code}", kind, 3, 1, 2, 3)) for kind, code in scalars.items()
    ]
    keys += [_key(b"flag", 7, b"\1"), _key(b"flags", 9, struct.pack("<IQ", 7, 3) + b"\1\0\1")]
    tokens = b"".join(_text(f"tok{i}".encode()) for i in range(n_tokens))
    keys += [_key(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, n_tokens) + tokens)]
    keys += [_key(b"tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, n_tokens) + bytes(4 * n_tokens))]
    keys += [_key(b"general.tags", 9, struct.pack("<IQ", 8, 2) + _text(b"a") + _text("é".encode()))]
    if split:
        keys += [_key(b"split.no", 2, struct.pack("<H", 0)), _key(b"split.count", 2, struct.pack("<H", 1))]
    infos, at = [], 0
    for i in range(n_layer):
        for name, shape, kind, size in (("attn_q", (256, 8), 12, 1152), ("attn_norm", (32,), 0, 128)):
            info = _text(f"blk.{i}.{name}.weight".encode()) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            infos.append(info + struct.pack("<IQ", kind, at))
            at += size
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(at)


SEEDS = (_model(0, 0), _model(1, 3), _model(4, 40, split=True), _model(30, 400))


def mutate(rng: random.Random) -> bytes:
    content = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, how = rng.randrange(len(content) + 1), rng.randrange(7)
        if how == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            nasty = rng.choice(NASTY)
            content[at : at + len(nasty)] = nasty
        elif how == 2:
            content[at:at] = rng.choice(NASTY) * rng.choice((1, 1, 2, 50))
        elif how == 3:
            del content[at : at + rng.choice((1, 4, 8, 12, 100))]
        elif how == 4:
            del content[at:]
        elif how == 5:
            start = rng.randrange(len(content) + 1)
            content[at:at] = content[start : start + rng.choice((8, 24, 64, 500))]
        else:
            content[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
        if not content:
            break
    return bytes(content)


def read(content: bytes, rng: random.Random) -> str:
    """`read` or the refusal's first words."""
    size = len(content) if rng.random() < 0.8 else None
    try:
        parse_gguf_header(Bytes(content, piece=rng.choice((16, 512, 65_536)), size=size))
    except QuantplanError as error:
        if not str(error).isprintable():
            raise AssertionError(f"unprintable: {error!r}") from error
        return "refused"
    return "read"


def fuzz(n: int, seed: int, keep: Path) -> int:
    rng = random.Random(seed)
    parse_gguf_header(Bytes(SEEDS[1], piece=512, size=len(SEEDS[1])))  # loads the tables before memory is limited
    base = _status_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (base + MAX_BYTES, resource.RLIM_INFINITY))  # beyond it: MemoryError
    counts, slowest, begun = {"read": 0, "refused": 0}, 0.0, time.perf_counter()
    for i in range(n):
        content = mutate(rng)
        start = time.perf_counter()
        try:
            counts[read(content, rng)] += 1
        except Exception as error:
            return _failed(keep, content, f"round {i}: {type(error).__name__}: {error}")
        took = time.perf_counter() - start
        slowest = max(slowest, took)
        if took > MAX_SECONDS:
            return _failed(keep, content, f"round {i}: {took:.2f} s")
    print(f"{n:,} headers from seed {seed} in {time.perf_counter() - begun:.0f} s: {counts['read']:,} read, "
          f"{counts['refused']:,} refused, slowest {slowest * 1e3:.0f} ms, never {MAX_BYTES / 1e6:.0f} MB more than at "
          f"the start, at most {_status_bytes('VmHWM') / 1e6:.0f} MB resident")  # fmt: skip
    return 0


def _failed(keep: Path, content: bytes, why: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    keep.write_bytes(content)
    print(f"{why}; kept as {keep}")
    return 1


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def fuzz_with_atheris(corpus: Path, seconds: int) -> int:
    """Coverage-guided, from the same seeds; what it finds interesting stays in the folder `corpus`."""
    import atheris

    def one(content: bytes) -> None:
        read(content, random.Random(len(content)))

    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS):
        (corpus / f"seed-{i}").write_bytes(seed)
    atheris.instrument_all()
    limits = ["-max_len=65536", "-timeout=1", "-rss_limit_mb=256", f"-max_total_time={seconds}"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="how many headers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzzed.gguf"), help="where a failing header is written")
    parser.add_argument("--atheris", type=Path, metavar="FOLDER", help="let atheris mutate, with its corpus in FOLDER")
    parser.add_argument("--seconds", type=int, default=300, help="how long atheris runs")
    args = parser.parse_args()
    return fuzz_with_atheris(args.atheris, args.seconds) if args.atheris else fuzz(args.n, args.seed, args.keep)


if __name__ == "__main__":
    sys.exit(main())
