"""What vLLM needs for a plan's context and slots, of the original weights: reckoned, as it measures nothing before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantplan.errors import CannotExport
from quantplan.memory.estimate import HOST
from quantplan.model.facts import ModelFacts
from quantplan.serving.export.deployment import Deployment
from quantplan.units import GIB

BLOCK_TOKENS = 16  # vllm/config/cache.py (0.32.0): DEFAULT_BLOCK_SIZE
_VALUE_BYTES = 2  # weights and cache in 16 bit
_NULL_BLOCKS = 1  # vllm/v1/core/block_pool.py (0.32.0): one block is never given out


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the model lies over cards: `tensor` parts of each layer, `pipeline` parts of all layers."""

    tensor: int
    pipeline: int

    @property
    def n_parts(self) -> int:
        return self.tensor * self.pipeline


def layout(facts: ModelFacts | None, *, n_cards: int, n_nodes: int, nvlink: bool | None) -> Layout:
    """The cards of a node share each layer, the nodes follow each other. Cards without NVLink, and more of them than
    divide the heads, follow each other too: what they pass on then is one activation a token."""
    divides = all(
        layer.n_head % n_cards == 0 and (layer.n_head_kv % n_cards == 0 or n_cards % layer.n_head_kv == 0)
        for layer in (facts.layers if facts is not None else ()) if layer.has_kv and layer.n_head and layer.n_head_kv
    )  # fmt: skip
    if divides and nvlink is not False:
        return Layout(tensor=n_cards, pipeline=n_nodes)
    return Layout(tensor=1, pipeline=n_cards * n_nodes)


def kv_bytes(facts: ModelFacts, told: Deployment, over: Layout) -> int | None:
    """Cache of one card for all slots full of context, in 16 bit; every layer with its whole context, as vLLM keeps it
    where it does not know better. None for models with a state beside the cache, whose pages vLLM sizes by itself."""
    if any(layer.n_embd_s or layer.n_embd_r for layer in facts.layers):
        return None
    each = [
        math.ceil(layer.n_head_kv / over.tensor) * (layer.n_embd_head_k + layer.n_embd_head_v) * _VALUE_BYTES
        for layer in facts.layers if layer.has_kv
    ]  # fmt: skip
    if not each:
        return None
    n_layers = math.ceil(len(each) / over.pipeline)
    per_token = sum(sorted(each, reverse=True)[:n_layers])
    blocks = told.plan.n_parallel * math.ceil(told.plan.n_ctx_per_slot / BLOCK_TOKENS) + _NULL_BLOCKS
    return blocks * BLOCK_TOKENS * per_token


def weights_bytes(facts: ModelFacts) -> int:
    """All weights in 16 bit."""
    return facts.parameters * _VALUE_BYTES


def made_smaller(facts: ModelFacts, told: Deployment, kv: int, *, over: Layout) -> str | None:
    """None: the weights fit in 16 bit beside `kv` bytes of cache on each card; fp8 where half of them do. Raises
    CannotExport where neither does."""
    usable, weights = usable_bytes(told), weights_bytes(facts)
    if usable is None or weights / over.n_parts + kv <= usable:
        return None
    if told.gpu is not None and weights / 2 / over.n_parts + kv <= usable:
        return "fp8"
    need, room = weights + kv * over.n_parts, usable * over.n_parts
    raise CannotExport(
        target="vLLM",
        why=f"the original weights and the cache take {need / GIB:.1f} GiB in 16 bit, there are {room / GIB:.1f}",
        instead="a version of the model in AWQ or FP8, more nodes, or llama-server with this artifact",
    )


def usable_bytes(told: Deployment) -> int | None:
    """What the plan leaves for the model on the smallest of its cards (or the host), its margin kept; None where the
    plan does not know the capacity."""
    found = _capacities(told)
    if any(capacity is None for capacity, _ in found):
        return None
    return min((capacity or 0) - margin for capacity, margin in found)


def utilization(told: Deployment) -> float | None:
    """The share of the smallest card that may be used, rounded down to whole percents; None where unknown."""
    found = _capacities(told)
    if told.gpu is None or any(not capacity for capacity, _ in found):
        return None
    return min(math.floor(100 * ((capacity or 0) - margin) / (capacity or 1)) / 100 for capacity, margin in found)


def _capacities(told: Deployment) -> list[tuple[int | None, int]]:
    """(capacity, margin) of the devices that vLLM is to use."""
    margins = {margin.device: margin.bytes for margin in told.plan.margin}
    names = told.gpu.names if told.gpu is not None else (HOST,)
    return [(one.capacity_bytes, margins.get(one.name, 0)) for one in told.plan.memory if one.name in names]
