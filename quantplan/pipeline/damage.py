"""What a gate needs of the per-token scores of one artifact on one corpus: plain numbers by chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantplan.pipeline.logits import TokenScores

TAIL_SHARE = 0.05  # the largest divergences that are kept, as a share of all tokens
SHARES = {"kld_99": 0.01, "kld_999": 0.001}  # share of the tokens that exceed the quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """By chunk: mean KLD, mean change of the target's nats, mean square of its change of probability, share of tokens
    whose likeliest changed, share of tokens above the quantiles. `tail` are the largest token divergences, descending.
    """

    n_scored: int  # tokens a chunk
    kld: tuple[float, ...]
    ln_ppl_ratio: tuple[float, ...]
    delta_p_squared: tuple[float, ...]
    top_changed: tuple[float, ...]
    above_99: tuple[float, ...]
    above_999: tuple[float, ...]
    tail: tuple[float, ...]
    nll_reference: float
    nll_artifact: float

    @property
    def n_chunks(self) -> int:
        return len(self.kld)

    @property
    def n_tokens(self) -> int:
        return self.n_chunks * self.n_scored

    @property
    def kld_max(self) -> float:
        return self.tail[0]

    def quantile(self, name: str) -> float:
        """The token divergence that the share of SHARES exceeds."""
        return self.tail[min(math.floor(SHARES[name] * self.n_tokens), len(self.tail) - 1)]


def reduce_scores(tokens: TokenScores) -> Damage:
    """The numbers of a gate. A divergence is never negative: what the file's 16-bit steps leave under nought is cut."""
    import numpy as np

    kld = np.maximum(tokens.kld, 0.0)
    n = kld.size
    kept = min(n, max(math.ceil(TAIL_SHARE * n), 1))
    tail = np.sort(np.partition(kld, n - kept, axis=None)[n - kept :])[::-1]
    above = {name: kld > tail[min(math.floor(share * n), kept - 1)] for name, share in SHARES.items()}
    return Damage(
        n_scored=kld.shape[1],
        kld=_floats(tokens.kld.mean(axis=1).clip(min=0.0)),
        ln_ppl_ratio=_floats((tokens.nll_artifact - tokens.nll_reference).mean(axis=1)),
        delta_p_squared=_floats((tokens.delta_p**2).mean(axis=1)),
        top_changed=_floats((~tokens.same_top).mean(axis=1)),
        above_99=_floats(above["kld_99"].mean(axis=1)),
        above_999=_floats(above["kld_999"].mean(axis=1)),
        tail=_floats(tail),
        nll_reference=float(tokens.nll_reference.mean()),
        nll_artifact=float(tokens.nll_artifact.mean()),
    )  # fmt: skip


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(values.astype(float).tolist())
