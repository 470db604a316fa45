"""Block layouts of the ggml types, taken from the gguf package; types newer than it from a small table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlType:
    """One type: a row of `n_elements` (a multiple of block_size) takes n_elements / block_size * type_size bytes."""

    name: str
    value: int  # enum ggml_type
    block_size: int  # elements
    type_size: int  # bytes a block

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of n_elements in this type. Raises ValueError when they do not fill whole blocks."""
        blocks, rest = divmod(n_elements, self.block_size)
        if rest:
            raise ValueError(f"{n_elements} elements are no whole number of {self.name} blocks of {self.block_size}")
        return blocks * self.type_size


# Types that llama-quantize offers and PyPI's gguf 0.19.0 lacks: value, block size, bytes a block.
# gguf-py/gguf/constants.py of llama.cpp at commit 0c1e570, GGMLQuantizationType and GGML_QUANT_SIZES.
_NEWER_THAN_GGUF = {"Q2_0": (42, 64, 2 + 16)}


@cache
def ggml_types() -> Mapping[str, GgmlType]:
    """All types by name. Imports gguf (0.2 s), so only what computes sizes pays for it."""
    import gguf

    rows = {name: (value, *sizes) for name, (value, *sizes) in _NEWER_THAN_GGUF.items()}
    rows |= {q.name: (int(q.value), *sizes) for q, sizes in gguf.GGML_QUANT_SIZES.items()}
    return {name: GgmlType(name=name, value=row[0], block_size=row[1], type_size=row[2]) for name, row in rows.items()}
