"""What a graph is built for, and from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantplan.memory.graph import Tensor

MASK_F16, MASK_F32 = 2, 4  # bytes a mask element with and without flash attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of the model as the graph sees it: its shape, its bytes and the backend that holds it."""

    ne: tuple[int, ...]
    nbytes: int
    backend: int
    extra: int = 0  # what a GPU allocates beyond nbytes for a copy of it
    kind: str = "f32"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParams:
    """One reservation: what ubatch the graph is built for, and over which caches."""

    n_tokens: int
    n_seqs: int
    n_outputs: int
    n_kv: int  # cells a stream of the full cache
    n_kv_swa: int
    n_stream: int  # streams the attention is split into: 1 when unified
    flash_attn: bool
    type_k: str
    type_v: str
    n_rs: int  # slots of the recurrent state
    rotates_k: bool
    rotates_v: bool
    kv_elements: Mapping[str, tuple[int, int]]  # type name -> (block size, block bytes)
    pin_attention: int = -1  # the CPU backend when the cache stays on the host by choice


@dataclass(slots=True)
class AttnInput:
    """The inputs of one attention cache: positions of the new rows, mask, rotations."""

    k_idxs: Tensor
    v_idxs: Tensor
    mask: Tensor
    n_kv: int
    k_rot: Tensor | None
    v_rot: Tensor | None
