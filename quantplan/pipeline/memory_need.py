"""How much memory each tool of a build takes at its peak: what the kernel cannot give back, mapped files left out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from quantplan.ggml_types import ggml_types
from quantplan.memory.estimate import HOST, estimate_memory, prepare
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.places import data_file
from quantplan.units import GIB

# tools/quantize: --max-buffer-size, LLAMA_QUANT_MAX_BUF_SIZE; slabs of rows keep the buffers below (commit 0c1e570)
QUANTIZE_BUFFER_BYTES = 8 * GIB
_F32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStep:
    """One tool's peak of memory that cannot be taken back, and the file that it maps beside it."""

    name: str
    need_bytes: int
    mapped_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Converter:
    base_bytes: int
    bytes_per_element: float


def _measured(tool: str) -> list[tuple[int, int]]:
    """(elements of the largest tensor, anonymous bytes at the peak) of a tool: data/tool_memory.csv."""
    with data_file("tool_memory.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tool"] == tool]
    return [(int(row["largest_tensor_elements"]), int(row["anonymous_bytes"])) for row in rows]


@cache
def _converter() -> _Converter:
    """The process itself, and what a tensor costs beside it, at most."""
    measured = _measured("convert")
    base = min(n_bytes for _, n_bytes in measured)
    slope = max((n_bytes - base) / n for n, n_bytes in measured if n > 10_000_000)
    return _Converter(base_bytes=base, bytes_per_element=slope)


@cache
def _quantizer_slack() -> float:
    """How much more llama-quantize took than its buffers, at most. Its largest tensors were made Q6_K there: buffers
    that grow are copied, and both copies count for a moment."""
    kind = ggml_types()["Q6_K"]
    per_element = _F32_BYTES + kind.type_size / kind.block_size
    return max(n_bytes / (n * per_element) for n, n_bytes in _measured("quantize"))


def memory_steps(
    facts: ModelFacts, quants: Sequence[tuple[str, Sequence[TensorFacts]]], *, simd: frozenset[str], n_ctx: int = 512
) -> Iterator[MemoryStep]:
    """The peaks of conversion, of each quantization, and of scoring the 16-bit file on the CPU."""
    largest = max((tensor.n_elements for tensor in facts.tensors), default=0)
    converter = _converter()
    yield MemoryStep(name="convert", need_bytes=converter.base_bytes + int(largest * converter.bytes_per_element))
    for name, tensors in quants:
        yield MemoryStep(name=f"quantize {name}", need_bytes=_quantize_bytes(facts.tensors, tensors))
    ctx = ContextParams(n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_parallel=1, kv_unified=True, cache_ram_bytes=0)
    estimate = estimate_memory(prepare(facts), ctx, Placement(), simd=simd, reserve="fit-params")
    host = next(device for device in estimate.devices if device.name == HOST)
    logits = n_ctx * facts.n_vocab * _F32_BYTES
    yield MemoryStep(
        name="evaluate", mapped_bytes=host.mapped_bytes,
        need_bytes=host.repacked_bytes + host.context_bytes + host.compute_bytes + max(host.output_bytes, logits),
    )  # fmt: skip


def _quantize_bytes(source: Sequence[TensorFacts], result: Sequence[TensorFacts]) -> int:
    """src/llama-quant.cpp: a slab of rows as float32 and as the new type; the source is mapped."""
    types, before = ggml_types(), {tensor.name: tensor.type_name for tensor in source}
    peak = 0
    for tensor in result:
        if before.get(tensor.name) != tensor.type_name:
            kind = types[tensor.type_name]
            peak = max(peak, tensor.n_elements * _F32_BYTES + tensor.n_elements * kind.type_size // kind.block_size)
    return int(min(peak, QUANTIZE_BUFFER_BYTES) * _quantizer_slack())
