"""Memory in outline: exact weights and context, and a rule of thumb for the compute buffers.

Checked on published server starts of dense models (within 4 MiB); mixtures and unusual blocks may be off by more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.ggml_types import ggml_types
from quantplan.model.facts import LayerFacts, ModelFacts, TensorFacts
from quantplan.units import pad

KV_PAD_CELLS = 256  # src/llama-context.cpp: n_ctx is padded to 256 cells


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """The server's context: n_ctx tokens a slot, n_parallel slots in one pool."""

    n_ctx: int
    n_parallel: int
    n_ubatch: int
    type_k: str
    type_v: str


def layer_context_bytes(layer: LayerFacts, *, n_swa: int, ctx: ContextParams) -> int:
    """K/V cells of the pool and recurrent state of every slot of one layer, in bytes."""
    state = 4 * (layer.n_embd_r + layer.n_embd_s) * ctx.n_parallel
    if not layer.has_kv:
        return state
    cells = pad(ctx.n_ctx * ctx.n_parallel, KV_PAD_CELLS)
    if layer.is_swa and n_swa:
        cells = pad(min(cells, n_swa * ctx.n_parallel + ctx.n_ubatch), KV_PAD_CELLS)
    k = ggml_types()[ctx.type_k.upper()].row_bytes(layer.n_head_kv * layer.n_embd_head_k)
    v = ggml_types()[ctx.type_v.upper()].row_bytes(layer.n_head_kv * layer.n_embd_head_v)
    return state + cells * (k + v)


def tensor_bytes(tensor: TensorFacts) -> int:
    """Bytes of a tensor's rows, without padding."""
    kind = ggml_types()[tensor.type_name]
    rows = tensor.n_elements // tensor.shape[0] if tensor.shape[0] else 0
    return kind.row_bytes(tensor.shape[0]) * rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model at one preset, summed up once: bytes of each layer, of the head and of the embedding."""

    layer_bytes: tuple[int, ...]
    output_bytes: int  # head and final norms; with tied embeddings a second copy of them
    embedding_bytes: int
    tied: bool


def prepare(facts: ModelFacts, tensors: Sequence[TensorFacts]) -> Prepared:
    """Sums by layer over the tensors at their types in the preset."""
    layers = [0] * facts.n_layer
    output = embedding = 0
    tied = True
    for tensor in tensors:
        n_bytes = tensor_bytes(tensor)
        parts = tensor.name.split(".")
        if parts[0] == "blk" and int(parts[1]) < facts.n_layer:
            layers[int(parts[1])] += n_bytes
        elif parts[0].startswith("output"):
            output += n_bytes
            tied = tied and tensor.name != "output.weight"
        else:
            embedding += n_bytes
    return Prepared(
        layer_bytes=tuple(layers), output_bytes=output + embedding * tied, embedding_bytes=embedding, tied=tied
    )


def split_bytes(prepared: Prepared, facts: ModelFacts, ctx: ContextParams, n_gpu_layers: int) -> dict[str, int]:
    """Bytes by place: `device_model`, `device_context`, `host_model`, `host_context`.

    The last n_gpu_layers of n_layer + 1 are on the device, the head first; the embedding stays on the host.
    """
    first = max(0, facts.n_layer + 1 - n_gpu_layers)
    context = [layer_context_bytes(layer, n_swa=facts.n_swa, ctx=ctx) for layer in facts.layers]
    head = prepared.output_bytes if n_gpu_layers > 0 else 0
    without = prepared.output_bytes - (prepared.embedding_bytes if prepared.tied else 0) if not n_gpu_layers else 0
    return {
        "device_model": sum(prepared.layer_bytes[first:]) + head,
        "device_context": sum(context[first:]),
        "host_model": sum(prepared.layer_bytes[:first]) + prepared.embedding_bytes + without,
        "host_context": sum(context[:first]),
    }


def compute_bytes(facts: ModelFacts, ctx: ContextParams) -> tuple[int, int]:
    """(where the layers run, host beside a device) with flash attention: three rows of the feed-forward width and
    three of the embedding's for a micro-batch, and the mask."""
    n_ff = _widest(facts)
    cells = pad(ctx.n_ctx * ctx.n_parallel, KV_PAD_CELLS)
    mask = 2 * cells * ctx.n_ubatch
    rows = 4 * ctx.n_ubatch
    return rows * (3 * n_ff + 3 * facts.n_embd) + mask, rows * 2 * facts.n_embd + mask


def _widest(facts: ModelFacts) -> int:
    told = facts.metadata
    dense = told.get(f"{facts.arch}.feed_forward_length")
    expert = told.get(f"{facts.arch}.expert_feed_forward_length")
    widths = [max(dense) if isinstance(dense, (list, tuple)) else dense]
    widths.append(expert * facts.n_expert_used if isinstance(expert, int) else None)
    return max((width for width in widths if isinstance(width, int)), default=4 * facts.n_embd)
