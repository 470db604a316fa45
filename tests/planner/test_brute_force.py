"""The search against every candidate of its space, one by one, with the real memory and speed models."""

from __future__ import annotations

import pytest
from planner_cases import candidates, compare, instruments, random_case

N_CASES, STEP = 500, 25
MOST = 3_000  # candidates of a case; the mean is about 230


@pytest.mark.parametrize("first", range(0, N_CASES, STEP))
def test_never_worse_than_brute_force(first: int) -> None:
    """500 random model × host × objective cases: never worse, and never more memory than there is."""
    wrong = [told for seed in range(first, first + STEP) if (told := compare(random_case(seed)))]
    assert not wrong


def test_the_cases_are_not_trivial() -> None:
    """Every objective, hosts with no, one and two GPUs, mixtures, and spaces of some size."""
    cases = [random_case(seed) for seed in range(120)]
    assert len({case.request.objective for case in cases}) == 6
    assert {len(case.host.gpus) for case in cases} == {0, 1, 2}
    assert any(case.facts.n_expert for case in cases)
    sizes = [len(candidates(case, instruments(case))) for case in cases[:60]]
    assert sum(sizes) / len(sizes) > 100
    assert max(sizes) < MOST
