"""The order of a build and its use of the disk: nothing is used before it is made or after it is dropped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.pipeline.disk import RECORDS_BYTES, BuildSizes, DiskMode, disk_plan
from quantplan.pipeline.schedule import SOURCE, Kind, Order, Work, model_key, schedule
from quantplan.units import GIB

PRESETS = ("Q8_0", "Q4_K_M", "Q5_K_M", "BF16")
works = st.builds(
    Work,
    quants=st.lists(st.sampled_from(PRESETS), min_size=1, max_size=4, unique=True).map(tuple),
    baseline=st.just("Q8_0"),
    texts=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple),
    mmproj=st.booleans(), imatrix=st.booleans(), split=st.booleans(), source_is_ours=st.booleans(),
    remote=st.booleans(),
)  # fmt: skip
sizes = st.builds(
    BuildSizes,
    converted_bytes=st.integers(0, 1000),
    quants=st.fixed_dictionaries({name: st.integers(0, 1000) for name in PRESETS if name != "BF16"}),
    logits_bytes=st.integers(0, 1000), source_bytes=st.integers(0, 1000), mmproj_bytes=st.integers(0, 100),
    imatrix_bytes=st.integers(0, 100),
)  # fmt: skip


@given(work=works, order=st.sampled_from(Order))
def test_what_is_needed_is_there(work: Work, order: Order) -> None:
    there = {SOURCE}
    for action in schedule(work, order):
        assert set(action.needs) <= there, action.name
        if action.kind is Kind.DROP:
            there -= set(action.needs)
        if action.makes is not None:
            assert action.makes not in there
            there.add(action.makes)
    assert {model_key(work, quant) for quant in work.quants} <= there
    assert not [key for key in there if key.startswith("logits ")]


@given(work=works, order=st.sampled_from(Order))
def test_every_artifact_is_compared_on_every_text_before_it_is_published(work: Work, order: Order) -> None:
    compared: set[tuple[str | None, str | None]] = set()
    for action in schedule(work, order):
        if action.kind is Kind.COMPARE:
            compared.add((action.subject, action.text))
        if action.kind is Kind.PUBLISH:
            assert {(action.subject, text) for text in work.texts} <= compared
            assert {("Q8_0", text) for text in work.texts} <= compared


@settings(max_examples=300)
@given(work=works, of=sizes)
def test_tight_never_takes_more_than_fast(work: Work, of: BuildSizes) -> None:
    fast, tight = (disk_plan(of, work, mode) for mode in (DiskMode.FAST, DiskMode.TIGHT))
    assert tight.peak_bytes <= fast.peak_bytes
    assert tight.final_bytes <= fast.final_bytes
    assert fast.peak_bytes == max(step.on_disk_bytes for step in fast.steps)
    for plan in (fast, tight):
        running = RECORDS_BYTES + of.source_bytes
        for step in plan.steps:
            running += step.writes_bytes - step.frees_bytes
            assert running == step.on_disk_bytes


def test_sizes_of_a_real_build() -> None:
    """16 GiB, Q8_0 8 GiB, 5 and 6 GiB, five texts of 1.25 GiB: by hand."""
    work = Work(quants=("Q4_K_M", "Q5_K_M"), baseline="Q8_0", texts=tuple("abcde"))
    of = BuildSizes(
        converted_bytes=16 * GIB, quants={"Q8_0": 8 * GIB, "Q4_K_M": 5 * GIB, "Q5_K_M": 6 * GIB},
        logits_bytes=5 * GIB // 4,
    )  # fmt: skip
    fast = disk_plan(of, work, DiskMode.FAST)
    assert fast.peak_bytes == (16 + 8 + 5 + 6) * GIB + 2 * 5 * GIB // 4 + RECORDS_BYTES
    assert fast.final_bytes == 35 * GIB + RECORDS_BYTES
    tight = disk_plan(of, work, DiskMode.TIGHT)
    assert tight.order is Order.BY_QUANT
    assert tight.peak_bytes == (16 + 5 + 6) * GIB + 5 * 5 * GIB // 4 + RECORDS_BYTES
    assert tight.final_bytes == 11 * GIB + RECORDS_BYTES


@pytest.mark.parametrize(("free", "mode"), [(10**9, DiskMode.FAST), (RECORDS_BYTES + 1_000, DiskMode.TIGHT)])
def test_auto_is_fast_where_it_fits(free: int, mode: DiskMode) -> None:
    work = Work(quants=("Q4_K_M",), baseline="Q8_0", texts=("a",))
    of = BuildSizes(converted_bytes=500, quants={"Q8_0": 250, "Q4_K_M": 150}, logits_bytes=100)
    assert disk_plan(of, work, DiskMode.AUTO, free_bytes=free).mode is mode
