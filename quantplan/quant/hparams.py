"""What the recipes look at in a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantplan.quant.mixtures import Shape

# LLM_TYPE_70B in src/models/{deci,olmo,qwen2,jais2}.cpp (commit 0c1e570): architecture and layers; llama.cpp below
_70B_LAYERS = {"deci": 80, "olmo": 80, "qwen2": 80, "jais2": 68}


def _first(value: object, default: int) -> int:
    """A number, or the one of layer 0 where it differs by layer."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return int(value) if isinstance(value, (int, float)) else default


def shape_of(metadata: Mapping[str, object]) -> Shape:
    """The hparams that llama-quant.cpp reads, of a GGUF's key-values (llama_model_base::load_hparams)."""
    arch = str(metadata.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        return _first(metadata.get(f"{arch}.{key}"), default)

    n_head = number("attention.head_count")
    n_head_kv = number("attention.head_count_kv", n_head)
    n_layer_all, n_expert = number("block_count"), number("expert_count")
    n_layer = n_layer_all - number("nextn_predict_layers")
    is_70b = _70B_LAYERS.get(arch) == n_layer
    if arch in ("llama", "llama-embed"):  # src/models/llama.cpp: 65B is the one without grouped queries
        is_70b = n_layer == 80 and n_expert != 8 and n_head != n_head_kv
    return Shape(
        arch=arch,
        n_layer_all=n_layer_all,
        n_gqa=n_head // n_head_kv if n_head_kv else 0,
        n_expert=n_expert,
        is_70b=is_70b,
    )
