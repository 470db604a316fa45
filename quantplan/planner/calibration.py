"""The constants of the speed model, as data: by backend, fitted from measurements; and what this very host showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Weight types whose kernels cost alike. Types that are not here are `iq`.
WEIGHT_CLASSES = {
    "F32": "f", "F16": "f", "BF16": "f", "Q8_0": "q8", "Q4_0": "q4", "Q4_1": "q4", "Q5_0": "q4", "Q5_1": "q4",
    "MXFP4": "q4", "Q4_K": "q4_k", "Q5_K": "q4_k", "Q6_K": "q6_k", "Q3_K": "q3_k", "Q2_K": "q2_k",
}  # fmt: skip
Memory = Literal["GDDR", "HBM", "shared", "DDR"]


def weight_class(type_name: str) -> str:
    """f | q8 | q4 | q4_k | q6_k | q3_k | q2_k | iq"""
    return WEIGHT_CLASSES.get(type_name, "iq")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpeed:
    """What one of the engine's backends gets out of a device.

    Decoding: `read` is the share of the bandwidth by kind of memory; `cost` the float operations that a weight of a
    class takes for one token, `attention` those of a multiplication with the cache (`attention_quantized`: of a cache
    that is not 16 bit); time to read and time to compute of the same matrices join as (a^join + b^join)^(1/join).
    `matrix_s`, `vector_s`, `attention_s`, `recurrent_s` and `mixture_s` are seconds a matrix, a vector (norm, bias), an
    attention layer, a recurrent layer and a mixture of experts take whatever their size, `token_s` a token.
    `batch` is the share of `cost` that each further token of a small batch takes.
    Prefill: `prefill` is the share of the 16-bit arithmetic by class; of quantized weights and of attention times
    `matrix` by kind of memory (cards with HBM have matrix units that these kernels use less of); a matrix works on
    `tile` tokens more than there are, one of an expert on `expert_tile` more and at `prefill_experts` of the share;
    `prefill_matrix_s` and `prefill_layer_s` are seconds a matrix and a layer take of every micro-batch.
    `crossing_s` is what going over to another device and back takes, once for a run of layers.
    `spread_decode` and `spread_prefill` are the relative half-widths of the ranges by kind of memory.
    """

    read: Mapping[str, float]
    join: float
    cost: Mapping[str, float]
    attention: float
    attention_quantized: float
    matrix_s: float
    vector_s: float
    attention_s: float
    recurrent_s: float
    mixture_s: float
    token_s: float
    batch: float
    prefill: Mapping[str, float]
    prefill_experts: float
    prefill_attention: float
    matrix: Mapping[str, float]
    tile: float
    expert_tile: float
    prefill_matrix_s: float
    prefill_layer_s: float
    crossing_s: float
    spread_decode: Mapping[str, float]
    spread_prefill: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardCompute:
    """Arithmetic of a card as its datasheet has it, and its kind of memory."""

    fp32_flops_per_s: int | None
    fp16_flops_per_s: int | None
    memory: Memory = "GDDR"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMeasurement:
    """One run of the engine on this very host, beside what the shipped constants say of it.

    Seconds are those of a token; `predicted_s` are of the shipped constants at `bandwidth_bytes_per_s`. `nbytes` are
    what a decoded token reads, `spread` is the relative half-width of the samples.
    """

    device: str
    kind: Literal["decode", "prefill"]
    model: str
    quant: str
    weights: str  # the class of most of its weights
    is_mixture: bool
    nbytes: int
    n_depth: int
    measured_s: float
    predicted_s: float
    bandwidth_bytes_per_s: int
    spread: float
    n_runs: int
    build: str
    measured_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All backends' constants with their source, the cards' arithmetic, and what was measured on this host."""

    backends: Mapping[str, BackendSpeed]
    staged_bytes_per_s: float  # what reaches a GPU of a file that is mapped, not pinned
    unmeasured_ram: Mapping[str, float]  # bytes a second, value, low and high, where RAM was never measured
    unmeasured_ram_is: str
    source: str
    cards: Mapping[str, CardCompute] = field(default_factory=dict)
    measured: tuple[HostMeasurement, ...] = ()
    ram_is_quick: bool = False  # RAM was measured in a moment, on a host that may have been busy


def calibration_from(told: Mapping[str, Any]) -> Calibration:
    """The calibration of a parsed data file."""
    backends = {name: BackendSpeed(**values) for name, values in told["backends"].items()}
    return Calibration(
        backends=backends, staged_bytes_per_s=told["staged_bytes_per_s"], unmeasured_ram=told["unmeasured_ram"],
        unmeasured_ram_is=told["unmeasured_ram_is"], source=told["source"],
    )  # fmt: skip
