"""What kind of model it is, as far as a plan depends on it: what it can be asked, and what its context costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quantplan.model.facts import LayerFacts, ModelFacts
from quantplan.model.layer_rules import NO_MEMORY
from quantplan.units import format_mib

_STATE_BYTES = 4  # src/llama-model.cpp, create_memory: recurrent states are f32
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_ENCODER_DECODER = frozenset({"t5", "t5encoder"})
_VISION = ("vl", "vlmoe", "mllama", "cogvlm", "chameleon")  # endings of the architectures' names


class Kind(Enum):
    TEXT = "text"
    RECURRENT = "recurrent"
    HYBRID = "hybrid"
    ENCODER = "encoder"
    EMBEDDING = "embedding"
    DIFFUSION = "diffusion"
    ENCODER_DECODER = "encoder-decoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nature:
    """The kind, whether it sees, and in sentences what follows. `embeds`: it is served for vectors, not for text."""

    kind: Kind
    sees: bool
    says: tuple[str, ...]

    @property
    def embeds(self) -> bool:
        return self.kind in (Kind.ENCODER, Kind.EMBEDDING)


def nature_of(facts: ModelFacts) -> Nature:
    """What the model is."""
    kind = _kind(facts)
    sees = facts.sees or facts.arch.endswith(_VISION)
    return Nature(kind=kind, sees=sees, says=(*_says(kind, facts), *_vision(facts, sees=sees)))


def _kind(facts: ModelFacts) -> Kind:
    if facts.arch in _DIFFUSION:
        return Kind.DIFFUSION
    if facts.arch in _ENCODER_DECODER:
        return Kind.ENCODER_DECODER
    if facts.arch in NO_MEMORY:
        return Kind.ENCODER
    if facts.metadata.get(f"{facts.arch}.pooling_type") not in (None, 0):
        return Kind.EMBEDDING
    recurrent = sum(1 for layer in facts.layers if _state(layer))
    cached = sum(1 for layer in facts.layers if layer.has_kv and layer.n_head_kv)
    if recurrent:
        return Kind.HYBRID if cached else Kind.RECURRENT
    return Kind.TEXT


def _state(layer: LayerFacts) -> int:
    return layer.n_embd_r + layer.n_embd_s


def state_bytes(facts: ModelFacts) -> int:
    """Bytes of the recurrent state of one slot."""
    return sum(_state(layer) for layer in facts.layers) * _STATE_BYTES


def _says(kind: Kind, facts: ModelFacts) -> tuple[str, ...]:
    state = format_mib(state_bytes(facts))
    recurrent = sum(1 for layer in facts.layers if _state(layer))
    if kind is Kind.RECURRENT:
        return (
            f"a recurrent model without attention: no cache that grows, {state} of state a slot whatever the context",
            "the type of the cache and flash attention make no difference to it",
        )
    if kind is Kind.HYBRID:
        both = any(_state(layer) and layer.has_kv and layer.n_head_kv for layer in facts.layers)
        where = "beside their cache" if both else "instead of a cache"
        return (
            f"a hybrid: {recurrent} of {facts.n_layer} layers keep a state {where}, {state} a slot; every slot more "
            "costs that again (the server's own default is 4 slots)",
        )
    if kind is Kind.ENCODER:
        return (
            "an encoder: it turns text into vectors or scores and generates none; served with --embedding",
            "a text must fit into one micro-batch, so that is as long as the context",
        )
    if kind is Kind.EMBEDDING:
        return ("an embedding model: it is served with --embedding, for vectors; its answers are no text",)
    if kind is Kind.DIFFUSION:
        return ("a diffusion model: it writes whole texts step by step, which llama-server does not serve",)
    if kind is Kind.ENCODER_DECODER:
        return ("an encoder with a decoder: llama-server answers with it, its compute buffers are not modelled",)
    return ()


def _vision(facts: ModelFacts, *, sees: bool) -> tuple[str, ...]:
    if not sees:
        return ()
    if facts.vision_bytes is None:
        return ("it sees with a projector (mmproj) file of its own, which is not counted here",)
    size = format_mib(facts.vision_bytes)
    return (f"it sees: its vision tower becomes a projector (mmproj) file of about {size}, not counted here",)
