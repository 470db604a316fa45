"""The first verdict: 4 × Q8_0 + 0.01, two standard errors, three values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantplan.artifact.results import Verdict
from quantplan.pipeline import gate
from quantplan.pipeline.gate import Estimate, Scores


def scores(kld: float, se: float = 0.0) -> Scores:
    return Scores(
        kld=Estimate(mean=kld, se=se, n=255), ln_ppl_ratio=Estimate(mean=0.01, se=0.001, n=255),
        same_top=Estimate(mean=0.97, se=0.01, n=255), rms_delta_p=0.02, ppl_reference=5.0, ppl_artifact=5.05,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "se", "expected"),
    [
        (0.018, 0.0005, Verdict.PASS),
        (0.018, 0.0015, Verdict.INCONCLUSIVE),  # 0.018 + 0.003 is outside, 0.018 - 0.003 inside
        (0.022, 0.0015, Verdict.INCONCLUSIVE),
        (0.024, 0.0015, Verdict.FAIL),
        (0.02, 0.0, Verdict.PASS),
        (math.nan, 0.001, Verdict.INCONCLUSIVE),
        (0.001, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_judge_at_a_limit_of_0_02(mean: float, se: float, expected: Verdict) -> None:
    assert gate.judge(Estimate(mean=mean, se=se, n=1), 0.02) is expected


def test_limit_is_four_times_q8_0_and_a_hundredth() -> None:
    assert gate.kld_limit(scores(0.002)) == pytest.approx(0.018)


def test_one_failing_corpus_fails_the_artifact() -> None:
    q8 = {"prose": scores(0.001), "code": scores(0.001)}
    judged = gate.judge_artifact({"prose": scores(0.002), "code": scores(0.5)}, q8)
    assert judged.verdict is Verdict.FAIL
    assert "code: 0.50000" in judged.reason
    assert "prose" not in judged.reason
    limits = {m.corpus: m.limit for m in judged.metrics if m.name == "kld_mean"}
    assert limits == {"prose": pytest.approx(0.014), "code": pytest.approx(0.014)}


def test_inconclusive_never_passes() -> None:
    q8 = {"prose": scores(0.001), "code": scores(0.001)}
    judged = gate.judge_artifact({"prose": scores(0.002), "code": scores(0.0135, 0.001)}, q8)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert gate.judge_artifact({}, {}).verdict is Verdict.INCONCLUSIVE


def test_q8_0_always_passes_its_own_limit() -> None:
    q8 = {"prose": scores(0.3, 0.01)}
    assert gate.judge_artifact(q8, q8).verdict is Verdict.PASS


def test_the_standard_error_is_over_chunks() -> None:
    values = np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    found = gate.estimate(values)
    assert (found.mean, found.n) == (2.0, 6)
    assert found.se == pytest.approx(math.sqrt(2 / 2))
    assert gate.estimate(values[:1]).se == math.inf
