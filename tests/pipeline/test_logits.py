"""Per-token scores from files written here in the tool's layout."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantplan.pipeline import logits
from quantplan.pipeline.logits import BadLogits


def write_logits(path: Path, tokens: Any, log_p: Any, n_ctx: int) -> None:
    """process_logits() of tools/perplexity: 16-bit steps between the largest and 16 nats below it."""
    n_chunk, n_vocab = len(tokens), log_p.shape[-1]
    with path.open("wb") as file:
        file.write(b"_logits_" + struct.pack("<iii", n_ctx, n_vocab, n_chunk))
        tokens.astype(np.int32).tofile(file)
        for row in log_p.reshape(-1, n_vocab):
            low = max(row.min(), row.max() - 16)
            scale = np.float32((row.max() - low) / 65535)
            steps = np.zeros(2 * ((n_vocab + 1) // 2), np.uint16)
            steps[:n_vocab] = np.rint((np.maximum(row, low) - low) / scale)
            file.write(struct.pack("<ff", scale, low) + steps.tobytes())


def sample(*, n_chunk: int = 3, n_ctx: int = 16, n_vocab: int = 11, noise: float = 0.0) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    raw = random.normal(0, 2, (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab))
    raw = raw + noise * np.random.default_rng(2).normal(0, 1, raw.shape)
    log_p = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    return random.integers(0, n_vocab, (n_chunk, n_ctx)), log_p


def test_scores_equal_the_exact_ones_within_the_16_bit_steps(tmp_path: Path) -> None:
    (tokens, p), (_, q) = sample(), sample(noise=0.3)
    write_logits(tmp_path / "p", tokens, p, 16)
    write_logits(tmp_path / "q", tokens, q, 16)
    found = logits.compare(tmp_path / "p", tmp_path / "q")
    targets = tokens[:, 9:]
    nll = -np.take_along_axis(p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nll_reference, nll, atol=3e-4)
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(-1), atol=3e-4)
    assert (found.same_top == (p.argmax(-1) == q.argmax(-1))).all()
    assert found.n_clipped == 0
    assert found.kld.shape == (3, 7)


def test_a_file_against_itself_has_no_divergence_at_all(tmp_path: Path) -> None:
    tokens, p = sample()
    write_logits(tmp_path / "p", tokens, p, 16)
    found = logits.compare(tmp_path / "p", tmp_path / "p")
    assert (found.kld == 0).all()
    assert found.same_top.all()


def test_slices_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tokens, p), (_, q) = sample(), sample(noise=0.3)
    write_logits(tmp_path / "p", tokens, p, 16)
    write_logits(tmp_path / "q", tokens, q, 16)
    whole = logits.compare(tmp_path / "p", tmp_path / "q").kld
    monkeypatch.setattr(logits, "_SLICE_BYTES", 500)
    np.testing.assert_array_equal(logits.compare(tmp_path / "p", tmp_path / "q").kld, whole)


@pytest.mark.parametrize(("n_vocab", "n_ctx", "n_chunk"), [(11, 16, 3), (12, 17, 2), (300, 512, 1)])
def test_size_is_predicted_to_the_byte(tmp_path: Path, n_vocab: int, n_ctx: int, n_chunk: int) -> None:
    tokens, p = sample(n_chunk=n_chunk, n_ctx=n_ctx, n_vocab=n_vocab)
    write_logits(tmp_path / "p", tokens, p, n_ctx)
    assert logits.predicted_bytes(n_ctx=n_ctx, n_vocab=n_vocab, n_chunk=n_chunk) == (tmp_path / "p").stat().st_size


def test_cut_short_at_any_byte_is_refused(tmp_path: Path) -> None:
    tokens, p = sample(n_chunk=1)
    write_logits(tmp_path / "p", tokens, p, 16)
    whole = (tmp_path / "p").read_bytes()
    for size in (0, 7, 12, 19, 20, 50, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(BadLogits):
            logits.read_header(tmp_path / "cut")


def test_other_vocabulary_other_text_and_nan_are_refused(tmp_path: Path) -> None:
    tokens, p = sample()
    write_logits(tmp_path / "p", tokens, p, 16)
    others, q = sample(n_vocab=12)
    write_logits(tmp_path / "vocab", others, q, 16)
    with pytest.raises(BadLogits, match="vocabulary of 12, the reference has 11"):
        logits.compare(tmp_path / "p", tmp_path / "vocab")
    write_logits(tmp_path / "text", (tokens + 1) % 11, p, 16)
    with pytest.raises(BadLogits, match="other tokens"):
        logits.compare(tmp_path / "p", tmp_path / "text")
    damaged = bytearray((tmp_path / "p").read_bytes())
    at = 20 + 4 * tokens.size
    damaged[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "nan").write_bytes(bytes(damaged))
    with pytest.raises(BadLogits, match="not finite"):
        logits.compare(tmp_path / "p", tmp_path / "nan")
