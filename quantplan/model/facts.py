"""What a plan needs to know of a model, whatever it was read from.

Everything is stated as the engine sees it: a Hugging Face folder is first turned into the GGUF header that the
converter would write (`hf_config`), a GGUF is read (`gguf_header`), and both become `ModelFacts` the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class FactsOrigin(Enum):
    """Where the facts come from, from the surest to the least sure."""

    GGUF_HEADER = "gguf header"
    SAFETENSORS_HEADERS = "safetensors headers"
    CONFIG = "config.json"  # tensors derived from the configuration, not read
    CATALOG = "catalog"  # as CONFIG, from the configuration that ships with quantplan


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor as the GGUF holds it (or would): `shape` in ggml order, the row length first."""

    name: str
    shape: tuple[int, ...]
    type_name: str  # a name of GGML_TYPES: F32, BF16, Q4_K, …

    @property
    def n_elements(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What one layer keeps in the context memory, in elements.

    n_embd_head_k/v are elements per KV head and cell *as cached*: with MLA one latent head of
    kv_lora_rank + rope_dim elements, and n_embd_head_v = 0. n_embd_r/n_embd_s are the recurrent state
    (convolution and SSM) per slot, in float32 elements, as in llama-hparams.cpp; 0 for attention layers.
    """

    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    is_swa: bool = False
    has_kv: bool = True  # False: recurrent, attention-free, or it shares the cache of an earlier layer
    n_embd_r: int = 0
    n_embd_s: int = 0
    n_embd_idx_k: int = 0  # sparse attention: elements a cell of the indexer's own key (and value) cache
    n_embd_idx_v: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where the model lies. None where unknown or local."""

    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model. `metadata` are the GGUF key-values without the token arrays; `tensors` those of the language
    model's file in file order (a vision tower's go to an mmproj file and are counted apart)."""

    id: str
    arch: str
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    parameters: int
    layers: tuple[LayerFacts, ...]
    tensors: tuple[TensorFacts, ...]
    origin: FactsOrigin
    n_swa: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    tokenizer: str | None = None
    has_chat_template: bool | None = None
    licence: str | None = None
    source: SourceFacts = field(default_factory=SourceFacts)
    sees: bool = False  # the checkpoint's configuration has a vision tower
    vision_bytes: int | None = None  # the tower's, as the checkpoint holds it; None where there is none or unknown
    metadata: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def active_parameters(self) -> int:
        """Parameters that one token reads: of each expert tensor the share of experts used; all of a dense model."""
        if not self.n_expert or not self.n_expert_used:
            return self.parameters
        experts = sum(tensor.n_elements for tensor in self.tensors if "_exps" in tensor.name)
        return self.parameters - experts + experts * self.n_expert_used // self.n_expert
