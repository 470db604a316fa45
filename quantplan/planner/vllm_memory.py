"""vLLM's memory: weights in the checkpoint's own precision, blocks of KV cache, how many requests they hold. Pure.

The rules are those of vLLM 0.32.0. Files under vllm/:
    v1/worker/utils.py            request_memory: ceil(total memory × gpu_memory_utilization)
    v1/worker/gpu_worker.py       what is left of it after weights and a dry run becomes KV cache
    v1/kv_cache_interface.py      a page: KV heads × tokens of a block × (K + V elements) × bytes, of each layer
    v1/core/kv_cache_utils.py     groups of layers that share pages; blocks = memory // (pages of the largest group)
    model_executor/layers/vocab_parallel_embedding.py   vocabularies are padded to a multiple of 64
The dry run's peak, CUDA graphs and the driver are measured by vLLM when it starts; here they are an allowance, which is
why the blocks on a GPU are about so many and not to the block. With the KV memory given they are to the block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from quantplan.ggml_types import ggml_types
from quantplan.memory.flash import is_latent
from quantplan.model.facts import LayerFacts, ModelFacts
from quantplan.units import pad

VERSION = "0.32.0"
BLOCK_TOKENS = 16  # config/cache.py: CacheConfig.DEFAULT_BLOCK_SIZE; on CPUs platforms/cpu.py takes 128
CPU_BLOCK_TOKENS = 128
UTILISATION = 0.92  # config/cache.py: gpu_memory_utilization
BATCHED_TOKENS = 2048  # engine/arg_utils.py: the smallest default of max_num_batched_tokens for a server
_VOCAB_PAD = 64  # vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE
_PLAIN = frozenset({"F32", "F16", "BF16"})
_PLAIN_BYTES = 2
_MERGE_UNDER = 1.5  # _get_kv_cache_groups_uniform_page_size: below that the larger bucket sets the size of a group
_ROPE = ("rope_freqs", "rope_factors")  # tables that only GGUFs hold


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """Layers that share a block table: how many, and the window (0: the whole context)."""

    n_layers: int
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What a block takes on one GPU, and the groups that draw blocks from the pool."""

    page_bytes: int  # of one layer
    groups: tuple[KvGroup, ...]
    block_tokens: int

    @property
    def block_bytes(self) -> int:
        """All layers of the largest group."""
        return self.page_bytes * max(group.n_layers for group in self.groups)

    def blocks_per_request(self, n_ctx: int, *, in_flight: int = BATCHED_TOKENS) -> int:
        """Blocks that one request of n_ctx tokens holds at most. A window holds itself and the tokens in flight."""
        total = 0
        for group in self.groups:
            if group.window:
                tokens = min(group.window - 1 + in_flight, n_ctx)
                total += -(-tokens // self.block_tokens) + 1
            else:
                total += -(-n_ctx // self.block_tokens)
        return total

    def n_blocks(self, kv_bytes: int) -> int:
        """Blocks of so much memory."""
        return max(kv_bytes, 0) // self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmMemory:
    """The plan of one GPU. `max_num_seqs` requests of n_ctx tokens are held at once; `concurrency` is vLLM's own
    figure, blocks over the blocks of one request."""

    version: str
    tensor_parallel: int
    pipeline_parallel: int
    gpu_memory_utilization: float
    requested_bytes: int
    weights_bytes: int
    allowance_bytes: int  # driver, dry run, CUDA graphs: assumed
    kv_bytes: int
    block_tokens: int
    block_bytes: int
    n_blocks: int
    kv_tokens: int
    concurrency: float
    max_num_seqs: int


def weights_bytes(facts: ModelFacts, *, tensor_parallel: int = 1) -> int:
    """Bytes of the weights on one GPU. Exact for one; matrices are cut over several, vectors and MLA's down-projections
    are not, which this rounds to an even cut of everything."""
    total = 0
    types = ggml_types()
    for tensor in facts.tensors:
        if tensor.name.startswith(_ROPE):
            continue
        if tensor.type_name not in _PLAIN:
            kind = types[tensor.type_name]
            total += tensor.n_elements // kind.block_size * kind.type_size
        elif tensor.name in ("token_embd.weight", "output.weight"):
            total += tensor.shape[0] * pad(prod(tensor.shape[1:]), _VOCAB_PAD) * _PLAIN_BYTES
        else:
            total += tensor.n_elements * _PLAIN_BYTES
    return -(-(total + (facts.vision_bytes or 0)) // tensor_parallel)


def kv_shape(facts: ModelFacts, *, tensor_parallel: int = 1, block_tokens: int = BLOCK_TOKENS) -> KvShape | None:
    """Pages and groups; None for models whose layers have pages of unlike sizes, or states beside a cache: vLLM pads
    those by rules that are not stated here."""
    cached = [layer for layer in facts.layers if layer.has_kv and layer.n_head_kv]
    if not cached or any(layer.n_embd_r or layer.n_embd_s or layer.n_embd_idx_k for layer in facts.layers):
        return None
    pages = {_page_bytes(layer, tensor_parallel, block_tokens) for layer in cached}
    if len(pages) != 1:
        return None
    full = sum(1 for layer in cached if not (layer.is_swa and facts.n_swa))
    sliding = len(cached) - full
    return KvShape(page_bytes=pages.pop(), groups=_groups(full, sliding, facts.n_swa), block_tokens=block_tokens)


def _page_bytes(layer: LayerFacts, tensor_parallel: int, block_tokens: int) -> int:
    """MLA keeps one latent vector a token, whole on every GPU; heads are cut over the GPUs, at least one on each."""
    if is_latent(layer):
        return block_tokens * layer.n_embd_head_k * _PLAIN_BYTES
    heads = max(layer.n_head_kv // tensor_parallel, 1)
    return heads * block_tokens * (layer.n_embd_head_k + layer.n_embd_head_v) * _PLAIN_BYTES


def _groups(full: int, sliding: int, window: int) -> tuple[KvGroup, ...]:
    """_get_kv_cache_groups_uniform_page_size: groups of the size of the smaller bucket, or of the larger where they
    hardly differ."""
    buckets = [(n, w) for n, w in ((full, 0), (sliding, window)) if n]
    if len(buckets) == 1:
        return (KvGroup(n_layers=buckets[0][0], window=buckets[0][1]),)
    least, most = min(full, sliding), max(full, sliding)
    size = most if most < least * _MERGE_UNDER else least
    groups = []
    for n, own in buckets:
        n_groups = -(-n // size)
        groups += [KvGroup(n_layers=len(range(i, n, n_groups)), window=own) for i in range(n_groups)]
    return tuple(groups)


def vllm_memory(
    facts: ModelFacts, *, total_bytes: int, n_ctx: int, n_seqs: int, driver_bytes: int, tensor_parallel: int = 1,
    pipeline_parallel: int = 1, utilisation: float = UTILISATION,
) -> VllmMemory | None:  # fmt: skip
    """The memory of one of the GPUs; None where the rule for its cache is not known. With pipeline parallel a GPU has
    its share of the layers."""
    shape = kv_shape(facts, tensor_parallel=tensor_parallel)
    if shape is None:
        return None
    weights = -(-weights_bytes(facts, tensor_parallel=tensor_parallel) // pipeline_parallel)
    requested = math.ceil(total_bytes * utilisation)
    allowance = driver_bytes + dry_run_bytes(facts, n_seqs=n_seqs, tensor_parallel=tensor_parallel)
    kv_bytes = max(requested - weights - allowance, 0)
    block_bytes = -(-shape.block_bytes // pipeline_parallel)
    n_blocks = kv_bytes // block_bytes
    concurrency = n_blocks / shape.blocks_per_request(n_ctx)
    return VllmMemory(
        version=VERSION, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel,
        gpu_memory_utilization=utilisation, requested_bytes=requested, weights_bytes=weights,
        allowance_bytes=allowance, kv_bytes=kv_bytes, block_tokens=shape.block_tokens, block_bytes=block_bytes,
        n_blocks=n_blocks, kv_tokens=int(concurrency * n_ctx), concurrency=concurrency,
        max_num_seqs=min(n_seqs, int(concurrency)),
    )  # fmt: skip


def dry_run_bytes(facts: ModelFacts, *, n_seqs: int, tensor_parallel: int = 1) -> int:
    """An assumption, not a rule of vLLM: a batch's rows of the widest feed-forward twice and of the residual four
    times, and logits in 32 bit of every request."""
    widths = [prod(t.shape[1:2]) for t in facts.tensors if "ffn_up" in t.name and len(t.shape) > 1]
    widest = max(widths, default=4 * facts.n_embd)
    return (
        BATCHED_TOKENS * _PLAIN_BYTES * (2 * widest // tensor_parallel + 4 * facts.n_embd) + n_seqs * 4 * facts.n_vocab
    )


def divides(facts: ModelFacts, tensor_parallel: int) -> bool:
    """Whether the heads can be cut over so many GPUs: all heads evenly, and KV heads evenly or each on several."""
    return all(
        layer.n_head % tensor_parallel == 0
        and (layer.n_head_kv % tensor_parallel == 0 or tensor_parallel % layer.n_head_kv == 0)
        for layer in _distinct(facts.layers)
        if layer.n_head and layer.n_head_kv
    )


def _distinct(layers: Sequence[LayerFacts]) -> set[LayerFacts]:
    return set(layers)
