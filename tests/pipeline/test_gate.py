"""Bounds, limits and verdicts: what a gate may say of numbers that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quantplan.artifact.results import Verdict
from quantplan.pipeline import gate, statistics, verdict
from quantplan.pipeline.damage import Damage, reduce_scores
from quantplan.pipeline.logits import TokenScores
from quantplan.pipeline.policy import Limit, load_policy
from quantplan.pipeline.saved import SavedScores, decide
from quantplan.pipeline.verdict import CorpusScores

STANDARD = load_policy("standard")


def tokens(kld: float, *, n_chunks: int = 20, spread: float = 0.3, seed: int = 1, n_scored: int = 255) -> TokenScores:
    """Scores whose mean divergence is exactly `kld`, skewed as real ones are."""
    random = np.random.default_rng(seed)
    raw = np.exp(random.normal(0, 1.5, (n_chunks, n_scored)) + random.normal(0, spread, (n_chunks, 1)))
    values = raw / raw.mean() * kld
    nll = random.exponential(0.5, (n_chunks, n_scored))
    return TokenScores(
        nll_reference=nll, nll_artifact=nll + values * random.choice((-0.5, 1.0), values.shape), kld=values,
        same_top=random.random(values.shape) > min(0.5, 8 * kld), delta_p=np.sqrt(values) / 4, n_clipped=0,
    )  # fmt: skip


def scores(kld: float, **how: Any) -> Damage:
    return reduce_scores(tokens(kld, **how))


def test_bounds_of_a_known_mean() -> None:
    """n = 100 chunks of mean 2 and standard deviation 1: se 0.1, and t(99) at 2.5 % is 1.984."""
    chunks = tuple([1.0] * 50 + [3.0] * 50)
    found = statistics.mean_bounds(chunks, low_tail=0.025, high_tail=0.025)
    assert found.value == 2.0
    assert found.se == pytest.approx(math.sqrt(100 / 99) / 10)
    assert found.low == pytest.approx(2 * math.exp(-1.984 * found.se / 2), rel=1e-3)
    assert found.high > 2 * math.exp(1.984 * found.se / 2)  # one more chunk as bad as the worst


@pytest.mark.parametrize(("df", "tail", "t"), [(9, 0.025, 2.262), (19, 0.0001, 4.590), (199, 0.001, 3.131)])
def test_students_t(df: int, tail: float, t: float) -> None:
    assert statistics.student_t(tail, df) == pytest.approx(t, rel=0.01)


def test_under_ten_chunks_nothing_is_told() -> None:
    found = statistics.mean_bounds((0.001,) * 8 + (0.002,), low_tail=0.01, high_tail=0.01)
    assert (found.low, found.high) == (0.0, math.inf)


def test_the_standard_error_is_over_chunks() -> None:
    """Two chunks of constant tokens: the 510 tokens are two observations."""
    kld = np.repeat([[1.0], [3.0]], 255, axis=1)
    one = TokenScores(nll_reference=kld, nll_artifact=kld, kld=kld, same_top=kld > 0, delta_p=kld, n_clipped=0)
    assert statistics.mean_se(reduce_scores(one).kld) == (2.0, 1.0)


def test_a_quantile_is_an_order_statistic() -> None:
    values = np.arange(10_000.0).reshape(40, 250)
    random = np.random.default_rng(1)
    values = random.permutation(values.ravel()).reshape(40, 250)
    one = TokenScores(nll_reference=values, nll_artifact=values, kld=values, same_top=values > -1,
                      delta_p=values, n_clipped=0)  # fmt: skip
    found = statistics.bounds("kld_99", reduce_scores(one), low_tail=0.01, high_tail=0.01)
    assert found.value == 9_899.0  # 100 of 10,000 are larger
    assert found.low < 9_880
    assert found.high > 9_920
    assert statistics.bounds("kld_999", reduce_scores(one), low_tail=0.01, high_tail=0.01).value == 9_989.0


def test_a_share_has_wilsons_bounds() -> None:
    found = statistics.rate_bounds((0.0,) * 40, n_scored=255, low_tail=0.01, high_tail=0.01)
    assert found.value == found.low == 0.0
    assert 0 < found.high < 0.005


def test_the_limit_is_the_largest_of_three_under_a_ceiling() -> None:
    limit = Limit(absolute=0.01, of_floor=10, of_q8_0=30, ceiling=0.1)
    assert limit.of(floor=0.0, q8_0=0.0) == 0.01  # nothing divides by a floor of nought
    assert limit.of(floor=0.002, q8_0=0.0001) == 0.02
    assert limit.of(floor=0.0, q8_0=0.001) == pytest.approx(0.03)
    assert limit.of(floor=0.0, q8_0=0.01) == 0.1
    assert limit.of(floor=0.0, q8_0=0.3) == 0.6  # a model that 8 bits hurt much: Q8_0 passes all the same


@pytest.mark.parametrize(
    ("kld", "n_chunks", "expected"),
    [
        (0.001, 20, Verdict.PASS),
        (0.005, 20, Verdict.INCONCLUSIVE),  # half the limit: 20 chunks are few for that
        (0.0096, 80, Verdict.INCONCLUSIVE),
        (0.04, 20, Verdict.FAIL),
        (0.001, 9, Verdict.INCONCLUSIVE),
    ],
)
def test_one_corpus_at_one_look(kld: float, n_chunks: int, expected: Verdict) -> None:
    policy = replace(STANDARD, quality={"kld_mean": Limit(absolute=0.01)})
    errors = statistics.errors_per_look(0.01, n_looks=5, n_tests=20)
    found = verdict.judge_corpus("prose", CorpusScores(artifact=scores(kld, n_chunks=n_chunks)), policy, errors)
    assert found.verdict is expected
    (metric,) = (m for m in found.metrics if m.name == "kld_mean")
    assert metric.limit == 0.01
    assert metric.n == n_chunks * 255
    if expected is not Verdict.INCONCLUSIVE:
        assert metric.margin is not None
        assert (metric.margin > 0) is (expected is Verdict.PASS)


def test_an_unmeasured_baseline_can_pass_but_never_fail() -> None:
    errors = statistics.errors_per_look(0.01, n_looks=5, n_tests=20)
    policy = replace(STANDARD, quality={"kld_mean": Limit(absolute=0.01, of_q8_0=30)})
    bad = CorpusScores(artifact=scores(0.1))
    assert verdict.judge_corpus("prose", bad, policy, errors).verdict is Verdict.INCONCLUSIVE
    told = replace(bad, q8_0=scores(0.0001, seed=2))
    assert verdict.judge_corpus("prose", told, policy, errors).verdict is Verdict.FAIL
    good = CorpusScores(artifact=scores(0.001))
    assert verdict.judge_corpus("prose", good, policy, errors).verdict is Verdict.PASS


def test_one_failing_corpus_fails_the_artifact() -> None:
    q8 = {"prose": scores(0.0001), "code": scores(0.0001)}
    judged = gate.judge_artifact({"prose": scores(0.002), "code": scores(0.5)}, q8)
    assert judged.verdict is Verdict.FAIL
    assert "on code: 0.5" in judged.reason
    assert judged.n_tokens == 2 * 20 * 255


def test_inconclusive_never_passes() -> None:
    q8 = {"prose": scores(0.0001), "code": scores(0.0001)}
    judged = gate.judge_artifact({"prose": scores(0.001), "code": scores(0.0095)}, q8)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert "not told apart" in judged.reason
    assert gate.judge_artifact({}, {}).verdict is Verdict.INCONCLUSIVE


def test_nan_is_no_verdict() -> None:
    broken = scores(0.001)
    nan = replace(broken, kld=(math.nan, *broken.kld[1:]))
    judged = gate.judge_artifact({"prose": nan}, {"prose": scores(0.0001)})
    assert judged.verdict is Verdict.INCONCLUSIVE


def test_q8_0_passes_standard_whatever_8_bits_do_to_the_model() -> None:
    """Against the ceiling too: its limit is twice its own damage, and it is paired with itself."""
    for kld in (1e-5, 0.004, 0.3):
        own = {"prose": scores(kld)}
        assert gate.judge_artifact(own, own).verdict is Verdict.PASS, kld


def test_what_a_pass_does_not_say_is_said() -> None:
    judged = gate.judge_artifact({"prose": scores(0.001)}, {"prose": scores(0.0001)})
    (note,) = judged.findings
    assert note.rule == "gate/not-detectable"
    assert "damage that adds less than about 0.0090 nats" in note.message
    assert "fewer than 21 % of the windows" in note.message


def test_the_order_in_which_chunks_are_stored_does_not_matter() -> None:
    """500 permutations of data that is close to the limit, where a test that took them as stored would waver."""
    policy = replace(STANDARD, quality={"kld_mean": Limit(absolute=0.01)}, budget_chunks=80)
    data = tokens(0.0062, n_chunks=80, spread=0.8, n_scored=40)
    keys = [f"{i * 7919 % 80:03d}" for i in range(80)]
    random = np.random.default_rng(1)
    found = set()
    for _ in range(500):
        order = random.permutation(80)
        moved = TokenScores(
            nll_reference=data.nll_reference[order], nll_artifact=data.nll_artifact[order], kld=data.kld[order],
            same_top=data.same_top[order], delta_p=data.delta_p[order], n_clipped=0,
        )  # fmt: skip
        judged = decide({"prose": SavedScores(keys=[keys[i] for i in order], artifact=moved)}, policy)
        found.add((judged.verdict, judged.reason, judged.n_tokens))
    assert len(found) == 1


def test_the_looks() -> None:
    assert statistics.looks(200) == (20, 40, 80, 140, 200)
    assert statistics.looks(20) == (20,)
    assert statistics.looks(12) == (12,)
    errors = statistics.errors_per_look(0.01, n_looks=5, n_tests=20)
    assert errors.wrong_pass == pytest.approx(0.001)
    assert errors.wrong_fail == pytest.approx(0.00005)
