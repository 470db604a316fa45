"""The judge of a build: every preset on the same chunks of every text, one look, the `standard` policy.

`quantplan gate` looks several times and takes more text where it must (pipeline.judge); both judge by
pipeline.verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantplan.pipeline import statistics, verdict
from quantplan.pipeline.damage import Damage, reduce_scores
from quantplan.pipeline.policy import DEFAULT, load_policy
from quantplan.pipeline.verdict import CorpusScores, Judgement, worst

__all__ = ["POLICY", "Judgement", "Scores", "judge_artifact", "reduce_scores", "worst"]

POLICY = f"quantplan/{DEFAULT}/1"
Scores = Damage


def judge_artifact(artifact: Mapping[str, Scores], q8_0: Mapping[str, Scores]) -> Judgement:
    """Every corpus for itself: one failing domain fails the artifact, whatever the others say. The limits' floor is
    not measured here, so it cannot raise them: a pass stands, and a fail is outside of the other two."""
    policy = load_policy(DEFAULT)
    n_tests = sum(len(policy.limits(corpus)) for corpus in artifact)
    errors = statistics.errors_per_look(policy.error_rate, n_looks=1, n_tests=max(1, n_tests))
    judged = [
        verdict.judge_corpus(corpus, CorpusScores(artifact=scores, q8_0=q8_0[corpus]), policy.without_floor(), errors)
        for corpus, scores in artifact.items()
    ]
    return verdict.conclude(judged, policy=policy)
