"""The whole sequential test on scores that are there already: what a simulation repeats, and a permutation must not
change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan.artifact.results import Verdict
from quantplan.pipeline import statistics, verdict
from quantplan.pipeline.damage import reduce_scores
from quantplan.pipeline.logits import TokenScores, take
from quantplan.pipeline.policy import Policy
from quantplan.pipeline.verdict import CorpusJudgement, CorpusScores, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedScores:
    """Per-token scores of one corpus, all of the same chunks. `keys` has one key a chunk by content
    (logits.chunk_keys): at every look those with the smallest are taken, so that the order of storage is immaterial.
    """

    keys: Sequence[str]
    artifact: TokenScores
    q8_0: TokenScores | None = None
    floor: TokenScores | None = None
    label: TokenScores | None = None

    def first(self, n: int) -> CorpusScores:
        index = sorted(range(len(self.keys)), key=lambda i: self.keys[i])[:n]
        parts = {
            role: reduce_scores(take(tokens, index))
            for role in ("artifact", "q8_0", "floor", "label")
            if (tokens := getattr(self, role)) is not None
        }
        return CorpusScores(**parts)


def decide(saved: Mapping[str, SavedScores], policy: Policy) -> Judgement:
    """Look after look over all corpora that are undecided, as pipeline.judge does it with the tools."""
    errors = verdict.errors_of(policy, corpora=tuple(saved))
    judged: dict[str, CorpusJudgement] = {}
    for n in statistics.looks(policy.budget_chunks):
        for corpus, scores in saved.items():
            if corpus in judged and judged[corpus].verdict is Verdict.PASS:
                continue
            judged[corpus] = verdict.judge_corpus(corpus, scores.first(n), policy, errors)
            if judged[corpus].verdict is Verdict.FAIL:
                return verdict.conclude(tuple(judged.values()), policy=policy)
        if all(one.verdict is Verdict.PASS for one in judged.values()):
            break
    return verdict.conclude(tuple(judged.values()), policy=policy)
