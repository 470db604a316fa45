"""GGUF key-values and tensor infos to `ModelFacts`, as the engine's loader reads them.

The rules are those of src/llama-model.cpp (load_hparams, create_memory), src/llama-hparams.cpp and the
load_arch_hparams of src/models/*.cpp in llama.cpp 0c1e570. `tests/model/test_gguf_facts.py` holds them against what
the tools print.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from quantplan.errors import BadModelFile
from quantplan.model.facts import FactsOrigin, LayerFacts, ModelFacts, SourceFacts, TensorFacts
from quantplan.model.layer_rules import NO_MEMORY, UNMODELLED, LayerPlan, plan_layers

# Arrays that a plan never reads, and that would make the facts as large as the vocabulary.
_VOCABULARY_KEYS = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.added_tokens",
)
# Frequency tables that the converter adds: no parameters of the model.
_NOT_PARAMETERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def facts_from_metadata(
    metadata: Mapping[str, object],
    tensors: Sequence[TensorFacts],
    *,
    id: str,  # noqa: A002 - the word of ModelFacts
    origin: FactsOrigin,
    source: SourceFacts | None = None,
    licence: str | None = None,
    has_chat_template: bool | None = None,
    warnings: Sequence[str] = (),
) -> ModelFacts:
    """The facts of one model file: what its metadata and tensor infos say to the engine.

    Raises BadModelFile when a key the engine requires is missing or is not what it must be.
    """
    keys = _Keys(metadata, id)
    plan = plan_layers(keys, {tensor.name for tensor in tensors})
    said = list(warnings)
    if plan.arch in UNMODELLED:
        said.append(f"the context memory of {plan.arch} is not modelled: ask the engine")
    elif not plan.known:
        said.append(f"architecture {plan.arch!r} is unknown: its layers are taken for plain attention")
    licence = licence if licence is not None else _text(metadata.get("general.license"))
    template = "tokenizer.chat_template" in metadata if has_chat_template is None else has_chat_template
    return ModelFacts(
        id=id,
        arch=plan.arch,
        n_layer=len(plan.layers),
        n_ctx_train=keys.number("context_length"),
        n_embd=keys.number("embedding_length"),
        n_vocab=_n_vocab(keys, tensors),
        parameters=sum(tensor.n_elements for tensor in tensors if tensor.name not in _NOT_PARAMETERS),
        layers=_layers(plan),
        tensors=tuple(tensors),
        origin=origin,
        n_swa=plan.n_swa,
        n_expert=keys.number("expert_count", 0),
        n_expert_used=max(keys.per_layer("expert_used_count", len(plan.layers), 0), default=0),
        tokenizer=_text(metadata.get("tokenizer.ggml.model")),
        has_chat_template=template,
        licence=licence,
        source=source if source is not None else SourceFacts(),
        metadata={key: value for key, value in metadata.items() if key not in _VOCABULARY_KEYS},
        warnings=tuple(said),
    )


def _layers(plan: LayerPlan) -> tuple[LayerFacts, ...]:
    cached = plan.arch not in NO_MEMORY
    return tuple(
        layer if cached else LayerFacts(n_head=layer.n_head, n_head_kv=layer.n_head_kv,
                                        n_embd_head_k=layer.n_embd_head_k, n_embd_head_v=layer.n_embd_head_v,
                                        is_swa=layer.is_swa, has_kv=False)
        for layer in plan.layers
    )  # fmt: skip


def _n_vocab(keys: _Keys, tensors: Sequence[TensorFacts]) -> int:
    """Tokens of the vocabulary: the key, the list of tokens, or the rows of the embedding."""
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Sequence) and not isinstance(tokens, (str, bytes)):
        return len(tokens)
    rows = next((t.shape[1] for t in tensors if t.name == "token_embd.weight" and len(t.shape) > 1), None)
    return rows if rows is not None else keys.number("vocab_size")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


class _Keys:
    """The keys of one architecture: `number("block_count")` is `{arch}.block_count`, read exactly."""

    def __init__(self, metadata: Mapping[str, object], path: str) -> None:
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise BadModelFile(path=path, why="the metadata names no architecture (general.architecture)")
        self.metadata, self.arch, self.path = metadata, arch, path

    def get(self, name: str) -> object | None:
        return self.metadata.get(f"{self.arch}.{name}")

    def number(self, name: str, default: int | None = None) -> int:
        """An integer. Raises BadModelFile when it is missing without a default, or no integer."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadModelFile(path=self.path, why=f"the metadata lacks {self.arch}.{name}")
        return self._whole(name, value)

    def per_layer(self, name: str, n_layer: int, default: int | Sequence[int]) -> list[int]:
        """One integer a layer: the key's array, its single value repeated, or the default."""
        value = self.get(name)
        if value is None:
            return [default] * n_layer if isinstance(default, int) else list(default)
        items = _as_list(value)
        if items is not None:
            numbers = [self._whole(name, item) for item in items]
            if len(numbers) < n_layer:
                raise BadModelFile(
                    path=self.path, why=f"{self.arch}.{name} has {len(numbers)} values for {n_layer} layers"
                )
            return numbers[:n_layer]
        return [self._whole(name, value)] * n_layer

    def flags(self, name: str, n_layer: int) -> list[bool] | None:
        """One truth value a layer, when the key is an array; None when it is missing or a single number."""
        items = _as_list(self.get(name))
        return None if items is None else ([bool(item) for item in items] + [False] * n_layer)[:n_layer]

    def _whole(self, name: str, value: object) -> int:
        number = getattr(value, "item", lambda: value)()  # a numpy scalar
        if isinstance(number, bool):
            return int(number)
        if not isinstance(number, int) or not 0 <= number < 2**40:
            raise BadModelFile(path=self.path, why=f"{self.arch}.{name} is {value!r}, not a count")
        return number


def _as_list(value: object) -> list[object] | None:
    """The items of a tuple, a list or a numpy array; None for anything else."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return None
    return list(value)
