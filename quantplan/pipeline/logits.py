"""Files of llama-perplexity --save-all-logits, reduced to one row a scored token.

Layout (tools/perplexity/perplexity.cpp, perplexity() and process_logits()): `_logits_`, int32 n_ctx, int32 n_vocab,
int32 n_chunk, int32 tokens[n_chunk][n_ctx], then per scored token float32 scale, float32 min and n_vocab uint16
steps of the log-probability (one more uint16 when n_vocab is odd). Scored are the targets after n_ctx/2.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.errors import QuantplanError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER_BYTES = 20
_SLICE_BYTES = 32 * 1024**2
_CUT_NATS = 15.999  # process_logits(): max(min_logit, max_logit - 16)


class BadLogits(QuantplanError):
    """A logits file that is missing, cut short, or of another text or vocabulary: no verdict can come of it."""

    def __init__(self, *, path: Path, why: str) -> None:
        super().__init__(f"{path.name}: {why}")
        self.path, self.why = str(path), why


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsHeader:
    """The shape of a file."""

    n_ctx: int
    n_vocab: int
    n_chunk: int

    @property
    def n_scored(self) -> int:
        """Scored tokens a chunk."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row_words(self) -> int:
        return 2 * ((self.n_vocab + 1) // 2) + 4

    @property
    def file_bytes(self) -> int:
        tokens = 4 * self.n_ctx * self.n_chunk
        return HEADER_BYTES + tokens + 2 * self.n_chunk * self.n_scored * self.row_words


def predicted_bytes(*, n_ctx: int, n_vocab: int, n_chunk: int) -> int:
    """Size of the file that a run will write: exact."""
    return LogitsHeader(n_ctx=n_ctx, n_vocab=n_vocab, n_chunk=n_chunk).file_bytes


def read_header(path: Path) -> LogitsHeader:
    """The header of a whole file. Raises BadLogits: a disk that filled up leaves a short file at exit status 0."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise BadLogits(path=path, why=error.strerror or str(error)) from error
    if len(start) < HEADER_BYTES or start[:8] != b"_logits_":
        raise BadLogits(path=path, why="no log-probabilities were written")
    n_ctx, n_vocab, n_chunk = struct.unpack("<iii", start[8:])
    if min(n_ctx, n_vocab, n_chunk) < 1:
        raise BadLogits(path=path, why="its header is damaged")
    header = LogitsHeader(n_ctx=n_ctx, n_vocab=n_vocab, n_chunk=n_chunk)
    if path.stat().st_size != header.file_bytes:
        raise BadLogits(path=path, why=f"has {path.stat().st_size} bytes, {header.file_bytes} were to be written")
    return header


def read_tokens(path: Path, header: LogitsHeader) -> NDArray[np.int32]:
    """The tokens, shape (n_chunk, n_ctx)."""
    import numpy as np

    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        return np.fromfile(file, np.int32, header.n_chunk * header.n_ctx).reshape(header.n_chunk, header.n_ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Per scored token, shape (n_chunk, n_scored), float64: nats of the target under reference and artifact,
    KL divergence of the artifact from the reference in nats, whether both rank the same token first, and the
    change of the target's probability. n_clipped: targets that either file holds at its lowest step, 16 nats under
    the likeliest token or further."""

    nll_reference: NDArray[np.float64]
    nll_artifact: NDArray[np.float64]
    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    delta_p: NDArray[np.float64]
    n_clipped: int


def chunk_keys(path: Path) -> tuple[str, ...]:
    """One key a chunk, by its tokens alone: an order that no score and no storage has a part in."""
    return tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in read_tokens(path, read_header(path)))


def take(tokens: TokenScores, index: Sequence[int]) -> TokenScores:
    """Some chunks of the scores, in the order of `index`; indices beyond the end are left out."""
    kept = [i for i in index if i < len(tokens.kld)]
    return TokenScores(
        nll_reference=tokens.nll_reference[kept], nll_artifact=tokens.nll_artifact[kept], kld=tokens.kld[kept],
        same_top=tokens.same_top[kept], delta_p=tokens.delta_p[kept], n_clipped=tokens.n_clipped,
    )  # fmt: skip


def join(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of several files of one model, chunk after chunk. Raises ValueError when there are none."""
    import numpy as np

    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return TokenScores(
        nll_reference=column("nll_reference"), nll_artifact=column("nll_artifact"), kld=column("kld"),
        same_top=column("same_top"), delta_p=column("delta_p"), n_clipped=sum(part.n_clipped for part in parts),
    )  # fmt: skip


def compare(reference: Path, artifact: Path) -> TokenScores:
    """Both files read in slices and reduced token by token. Raises BadLogits when they are not of the same text."""
    import numpy as np

    ours, theirs = read_header(reference), read_header(artifact)
    if ours.n_vocab != theirs.n_vocab:
        raise BadLogits(path=artifact, why=f"vocabulary of {theirs.n_vocab}, the reference has {ours.n_vocab}")
    if ours != theirs or not np.array_equal(read_tokens(reference, ours), read_tokens(artifact, theirs)):
        raise BadLogits(path=artifact, why="was made from other tokens than the reference")
    targets = read_tokens(reference, ours)[:, ours.n_ctx // 2 + 1 :].reshape(-1)
    columns: list[list[Any]] = [[], [], [], [], []]
    done, n_clipped = 0, 0
    for (p, p_cut), (q, q_cut) in zip(_slices(reference, ours), _slices(artifact, theirs), strict=True):
        index = np.arange(len(p)), targets[done : done + len(p)]
        done += len(p)
        p_target, q_target = p[index], q[index]
        weights = np.exp(p)
        n_clipped += int((p_cut[index] | q_cut[index]).sum())
        columns[0].append(-p_target)
        columns[1].append(-q_target)
        columns[2].append((weights * (p - q)).sum(axis=1))
        columns[3].append(p.argmax(axis=1) == q.argmax(axis=1))
        columns[4].append(np.exp(q_target) - np.exp(p_target))
    shape = (ours.n_chunk, ours.n_scored)
    joined = [np.concatenate(column).reshape(shape) for column in columns]
    if not np.isfinite(joined[0]).all():
        raise BadLogits(path=reference, why="holds values that are not finite: the reference's weights are damaged")
    if not all(np.isfinite(column).all() for column in joined):
        raise BadLogits(path=artifact, why="holds values that are not finite: the weights are damaged")
    return TokenScores(
        nll_reference=joined[0], nll_artifact=joined[1], kld=joined[2], same_top=joined[3], delta_p=joined[4],
        n_clipped=n_clipped,
    )  # fmt: skip


def mean_nll(path: Path) -> float:
    """Nats a scored token of one file alone. Raises BadLogits for values that are not finite."""
    import numpy as np

    header = read_header(path)
    targets = read_tokens(path, header)[:, header.n_ctx // 2 + 1 :].reshape(-1)
    total, done = 0.0, 0
    for log_p, _ in _slices(path, header):
        total -= float(log_p[np.arange(len(log_p)), targets[done : done + len(log_p)]].sum())
        done += len(log_p)
    if not np.isfinite(total):
        raise BadLogits(path=path, why="holds values that are not finite: the weights are damaged")
    return total / done


def _slices(path: Path, header: LogitsHeader) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Slices of shape (tokens, n_vocab): log-probabilities, normalized because 16-bit steps leave sums a little
    off 1, and which of them were cut off at 16 nats under the largest."""
    import numpy as np

    rows_left = header.n_chunk * header.n_scored
    at_once = max(1, _SLICE_BYTES // (8 * header.row_words))
    with path.open("rb") as file:
        file.seek(HEADER_BYTES + 4 * header.n_ctx * header.n_chunk)
        while rows_left:
            n = min(at_once, rows_left)
            rows_left -= n
            words = np.fromfile(file, np.uint16, n * header.row_words).reshape(n, header.row_words)
            scale, low = np.ascontiguousarray(words[:, :4]).view(np.float32).astype(np.float64).T
            steps = words[:, 4 : 4 + header.n_vocab]
            log_p = low[:, None] + scale[:, None] * steps
            cut = (steps == 0) & (scale * 65535 >= _CUT_NATS)[:, None]
            yield log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True)), cut
