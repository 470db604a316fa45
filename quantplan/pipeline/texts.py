"""The texts a gate measures on, cut so that a sequential test may look at part of them.

A text is cut at line ends into blocks of a few windows, and the blocks are taken in the order of their hashes: the
front of a text is not special, and no storage order has a say. What one look adds is a slice: some blocks, joined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadText

BLOCK_WINDOWS = 4  # a block is about so many windows of n_ctx tokens long
SPARE = 1.03  # a slice is cut a little longer than asked: tokens a byte differ from place to place


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Part of a text, for `n_chunks` windows at most."""

    corpus: str
    index: int
    text: str
    n_chunks: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_text(path: Path) -> str:
    """A text file as UTF-8 (with or without a mark). Raises BadText naming the byte that is not."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadText(text=path.name, why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise BadText(text=path.name, why=f"is not UTF-8 (byte {error.start})") from error
    if "\x00" in text:
        raise BadText(text=path.name, why="holds zero bytes: UTF-16, or no text at all")
    if not text.strip():
        raise BadText(text=path.name, why="is empty")
    return text


def cut(corpus: str, text: str, *, n_tokens: int, n_ctx: int, looks: Sequence[int]) -> tuple[Slice, ...]:
    """The slices that bring a corpus from one look to the next. The text may give fewer windows than the last look
    asks for; a rest of under two windows, which the tool refuses, is left out."""
    per_window = len(text) * n_ctx / max(1, n_tokens)
    blocks = _blocks(text, at_least=round(BLOCK_WINDOWS * per_window))
    slices: list[Slice] = []
    before = 0
    for index, look in enumerate(looks):
        wanted, taken, size = look - before, [], 0
        while blocks and size < wanted * per_window * SPARE:
            block = blocks.pop(0)
            taken.append(block)
            size += len(block)
        n_chunks = min(wanted, int(size / per_window))
        if n_chunks < 2:
            break
        slices.append(Slice(corpus=corpus, index=index, text="".join(taken), n_chunks=wanted))
        before = look
    return tuple(slices)


def _blocks(text: str, *, at_least: int) -> list[str]:
    """Runs of whole lines of at least so many characters, in the order of their hashes."""
    blocks: list[str] = []
    pending: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        pending.append(line)
        size += len(line)
        if size >= at_least:
            blocks.append("".join(pending))
            pending, size = [], 0
    if pending:
        rest = "".join(pending)
        if blocks and size < at_least // 2:
            blocks[-1] += rest
        else:
            blocks.append(rest)
    ends = (block if block.endswith("\n") else block + "\n" for block in blocks)
    return sorted(ends, key=lambda block: hashlib.sha256(block.encode()).digest())
