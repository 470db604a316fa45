"""Which family of architectures each name in `architectures` belongs to, as the pinned converter registers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.layout import Layout
from quantplan.model.hf.metadata import Metadata
from quantplan.model.hf.quantized import Weights


@dataclass(frozen=True, slots=True)
class Family:
    """One GGUF architecture: its tensors, and the key-values beyond those that all have."""

    arch: str
    tensors: Callable[[HfConfig, Layout], None]
    metadata: Callable[[HfConfig, Metadata], None]
    n_block: Callable[[HfConfig], int] = lambda c: c.n("n_layers", "num_hidden_layers", "n_layer", "num_layers")
    arch_of: Callable[[HfConfig], str] | None = None  # where the configuration decides
    read: Callable[[HfConfig, Weights], None] | None = None  # puts a checkpoint's own spelling to that of the rows


@cache
def families() -> Mapping[str, Family]:
    """All families by architecture name."""
    from quantplan.model.hf import (
        bailing3,
        deepseek,
        deepseek4,
        dense,
        encoders,
        experts,
        gemma3n,
        gemma4,
        hybrid,
        mamba_hybrids,
        moe,
        older,
        rarer,
        recurrent,
        variants,
        vision,
    )

    parts = (
        dense,
        variants,
        older,
        rarer,
        moe,
        experts,
        bailing3,
        deepseek,
        deepseek4,
        recurrent,
        mamba_hybrids,
        hybrid,
        gemma3n,
        gemma4,
        vision,
        encoders,
    )
    return {name: family for part in parts for name, family in part.FAMILIES.items()}
