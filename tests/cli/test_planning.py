"""A catalog model on hosts with a GPU, from facts of real cards; memory by the exact model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantplan.cli.planning import Planned, recommend
from quantplan.hardware.facts import CpuFacts, GpuFacts, HostFacts, RamFacts
from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.model.read import read_model
from quantplan.planner.request import PlanRequest
from quantplan.rehearsal.weightless import write_weightless
from quantplan.units import GIB, MIB

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def host(*gpus: tuple[str, int, int], ram: int = 64) -> HostFacts:
    """GPUs as (product, MiB, GB/s)."""
    return HostFacts(
        os="Linux",
        profile="test",
        cpu=CpuFacts(model="8 cores", n_physical=8, n_logical=16, n_threads=8, simd=("avx2",)),
        ram=RamFacts(total_bytes=ram * GIB, available_bytes=(ram - 2) * GIB),
        gpus=tuple(
            GpuFacts(name=f"CUDA{i}", product=product, vendor="nvidia", total_bytes=mib * MIB,
                     free_bytes=(mib - 400) * MIB, bandwidth_bytes_per_s=rate * 10**9)
            for i, (product, mib, rate) in enumerate(gpus)
        ),
    )  # fmt: skip


def planned(host_: HostFacts, **request: Any) -> Planned:
    return recommend(read_model(LLAMA), host_, PlanRequest(**request))


def test_a_12_gib_card_takes_8b_whole_at_8_bit() -> None:
    result = planned(host(("RTX 4070", 12282, 504)), n_ctx=8192)
    plan = result.plan
    assert (plan.quant, plan.n_gpu_layers) == ("Q8_0", 33)
    assert plan.decode_tokens_per_s is not None
    assert plan.decode_tokens_per_s.low < plan.decode_tokens_per_s.value < plan.decode_tokens_per_s.high
    gpu = plan.memory[0]
    assert (gpu.name, gpu.context_bytes) == ("CUDA0", 1024 * MIB)
    assert gpu.total_bytes <= gpu.free_bytes - 256 * MIB
    assert plan.memory[-1].name == "Host"
    assert plan.argv[plan.argv.index("--n-gpu-layers") + 1] == "33"


def test_an_8_gib_card_takes_a_smaller_preset_whole() -> None:
    plan = planned(host(("RTX 4060", 8188, 272)), n_ctx=8192).plan
    assert plan.n_gpu_layers == 33
    assert plan.quant in ("Q4_K_M", "Q5_K_M")


def test_a_4_gib_card_takes_some_layers() -> None:
    plan = planned(host(("GTX 1650", 4096, 128)), n_ctx=8192).plan
    assert plan.quant in ("Q4_K_M", "Q5_K_M")
    assert 0 < plan.n_gpu_layers < 33
    assert plan.decode_tokens_per_s is not None


def test_two_cards_share_the_layers() -> None:
    two = host(("RTX 3060", 12288, 360), ("RTX 3060", 12288, 360))
    plan = planned(two, n_ctx=32768, quants=("Q8_0",), kv_types=(("f16", "f16"),)).plan
    assert plan.devices is None
    assert sum(plan.tensor_split) == plan.n_gpu_layers == 33


def test_what_fits_on_one_card_leaves_the_other_alone() -> None:
    plan = planned(host(("RTX 3060", 12288, 360), ("RTX 3060", 12288, 360)), n_ctx=8192, quants=("Q4_K_M",)).plan
    assert plan.devices == ("CUDA0",)
    assert plan.argv[plan.argv.index("--device") + 1] == "CUDA0"
    assert [device.name for device in plan.memory] == ["CUDA0", "Host"]


def test_memory_of_two_cards() -> None:
    two = host(("RTX 3060", 12288, 360), ("RTX 3060", 12288, 360))
    plan = planned(two, n_ctx=32768, quants=("Q8_0",), kv_types=(("f16", "f16"),)).plan
    assert [device.name for device in plan.memory] == ["CUDA0", "CUDA1", "Host"]
    both = [device.model_bytes for device in plan.memory[:2]]
    assert min(both) > 0.4 * sum(both)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_context_grows_with_slots(slots: int) -> None:
    plan = planned(host(ram=64), n_ctx=4096, n_parallel=slots).plan
    assert sum(device.context_bytes for device in plan.memory) == slots * 512 * MIB
    assert plan.kv_unified is (slots > 1)


def test_a_finished_16_bit_file_is_planned_for_as_it_is(tmp_path: Path) -> None:
    from quantplan.cli.planning import plan_file
    from quantplan.llama.self_test import write_tiny_model

    write_tiny_model(tmp_path / "tiny.gguf")
    plan = plan_file(tmp_path / "tiny.gguf", quant="F32", host=host(), name="tiny")
    assert plan.quant == "F32"
    assert plan.model == "tiny"
    n_bytes = (tmp_path / "tiny.gguf").stat().st_size
    assert 0.98 * n_bytes < plan.memory[0].model_bytes <= n_bytes


def test_a_header_that_calls_quantized_tensors_bf16_is_not_believed(tmp_path: Path) -> None:
    """The tensors are what runs: no preset can be chosen any more, and none is named."""
    entry = catalog.find("meta-llama/Llama-3.2-1B-Instruct")
    assert entry is not None
    header = header_from_config(entry.config)
    small = [replace(one, type_name="Q8_0") if len(one.shape) == 2 else one for one in header.tensors]
    for tensors, quant in ((small, "as it is"), (header.tensors, "Q8_0")):
        write_weightless(tmp_path / "model.gguf", {**header.metadata, "general.file_type": 32}, tensors)
        facts = read_model(str(tmp_path / "model.gguf"))
        assert recommend(facts, host(("RTX 4070", 12282, 504)), PlanRequest(n_ctx=8192)).plan.quant == quant
