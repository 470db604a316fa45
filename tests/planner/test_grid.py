"""The grid behind a page's sliders: each cell is what a search of its own finds, and what does not fit says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import DENSE, EXPERTS, Case, facts, host_of, instruments

from quantplan.memory.estimate import HOST
from quantplan.planner.candidates import capacities_for
from quantplan.planner.grid import Axes, Cell, Explorer, Grid, axes_of, grid_of, is_whole
from quantplan.planner.instruments import shortage
from quantplan.planner.request import PlanRequest
from quantplan.planner.search import Search
from quantplan.units import MIB

QUANTS = ("Q8_0", "Q4_K_M", "Q2_K")
KV = (("f16", "f16"), ("q8_0", "q8_0"))


def explorer_of(architecture: str, *, gpu_mib: int | None, ram_mib: int, **asked: object) -> Explorer:
    model = facts(architecture, n_layer=6, n_embd=512, n_ff=1024, n_vocab=8000, n_head_kv=4, n_ctx_train=16384)
    gpus = [] if gpu_mib is None else [(gpu_mib * MIB, 300 * 10**9)]
    host = host_of(gpus, ram_bytes=ram_mib * MIB, ram_rate=40 * 10**9)
    request = PlanRequest(quants=QUANTS, n_ubatches=(512,), **asked)  # type: ignore[arg-type]
    tools = instruments(Case(model, host, request, architecture))
    best = Search(tools).best(request)
    assert best is not None
    return Explorer(tools=tools, request=request, best=best, speeds=lambda _: (None, None), quality_of=lambda _: None)


def made(explorer: Explorer) -> tuple[Grid, Axes]:
    axes = axes_of(explorer, quants=QUANTS, kv_types=KV)
    return grid_of(explorer, axes), axes


@pytest.mark.parametrize("architecture", [DENSE, EXPERTS])
@pytest.mark.parametrize("gpu_mib", [None, 60, 150])
def test_every_cell_is_what_a_search_of_its_own_finds(architecture: str, gpu_mib: int | None) -> None:
    explorer = explorer_of(architecture, gpu_mib=gpu_mib, ram_mib=260)
    grid, axes = made(explorer)
    assert len(grid.cells) == len(list(axes.positions()))
    for position, cell in zip(axes.positions(), grid.cells, strict=True):
        quant, kv, n_parallel, n_ctx = position
        asked = replace(explorer.request, quants=(quant,), kv_types=(kv,), n_parallel=n_parallel, n_ctx=n_ctx,
                        any_preset=True)  # fmt: skip
        alone = Search(explorer.tools).best(asked)
        assert cell is not None
        assert (cell.lacks is None) == (alone is not None), position
        if alone is not None:
            assert (cell.setting, cell.needs) == (alone.setting, alone.needs), position
    assert _cell(grid, grid.plan_at).setting == explorer.best.setting


def _cell(grid: Grid, at: tuple[int, ...]) -> Cell:
    axes, index = grid.axes, 0
    for values, i in zip((axes.quants, axes.kv_types, axes.n_parallels, axes.contexts), at, strict=True):
        index = index * len(values) + i
    found = grid.cells[index]
    assert found is not None
    return found


def test_what_does_not_fit_says_what_it_lacks() -> None:
    explorer = explorer_of(DENSE, gpu_mib=60, ram_mib=200)
    grid, axes = made(explorer)
    capacities = capacities_for(explorer.request, explorer.tools)
    lacking = [cell for cell in grid.cells if cell is not None and cell.lacks]
    assert 0 < len(lacking) < len(grid.cells)
    for cell in lacking:
        assert cell.lacks == "memory"
        short = shortage(cell.needs, capacities)
        assert short is not None
        assert short[0].name == HOST
        assert (cell.decode, cell.prefill, cell.total_per_s) == (None, None, 0.0)
    small = replace(
        explorer, tools=replace(explorer.tools, free_disk_bytes=explorer.tools.outline_of("Q4_K_M").file_bytes)
    )
    first = [_cell(grid_of(small, axes), (i, 0, 0, 0)).lacks for i in range(3)]
    assert first == ["disk", None, None]
    quick = replace(explorer, request=replace(explorer.request, min_tokens_per_s=1e9))
    assert _cell(grid_of(quick, axes), (1, 0, 0, 0)).lacks == "speed"


def test_the_axes_hold_the_plan_s_own_values() -> None:
    explorer = explorer_of(DENSE, gpu_mib=None, ram_mib=900, n_ctx=5000, n_parallel=3, kv_types=(("f16", "q8_0"),))
    axes = axes_of(explorer, quants=("Q2_K",), kv_types=KV)
    assert axes.contexts == (2048, 4096, 5000, 8192, 16384)
    assert axes.n_parallels == (1, 2, 3, 4, 8)
    assert axes.kv_types == (("f16", "q8_0"), *KV)
    assert axes.quants == (explorer.best.setting.quant, "Q2_K")


def test_how_far_the_context_reaches() -> None:
    explorer = explorer_of(DENSE, gpu_mib=70, ram_mib=70)
    grid, axes = made(explorer)
    at, tools = explorer.best.setting, explorer.tools

    def found(n_ctx: int) -> object:
        asked = replace(explorer.request, quants=(at.quant,), kv_types=((at.type_k, at.type_v),), n_ctx=n_ctx,
                        any_preset=True)  # fmt: skip
        return Search(tools).best(asked)

    assert grid.fits_n_ctx
    assert found(grid.fits_n_ctx) is not None
    assert found(grid.fits_n_ctx + 256) is None
    row = [_cell(grid, (*grid.plan_at[:3], i)) for i in range(len(axes.contexts))]
    whole = [n for n, cell in zip(axes.contexts, row, strict=True) if not cell.lacks and is_whole(cell.setting, 6)]
    assert grid.whole_n_ctx is not None
    assert (max(whole) if whole else 0) <= grid.whole_n_ctx <= grid.fits_n_ctx
