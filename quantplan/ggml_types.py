"""Block layouts of the ggml types, taken from the gguf package; types newer than it from a small table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType


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


# Types of the pinned build (commit 0c1e570) that the newest gguf on PyPI (0.19.0) does not have.
_NEWER_THAN_GGUF = (
    # ggml/include/ggml.h: GGML_TYPE_Q2_0 = 42
    # ggml/src/ggml-common.h:187: QK2_0 64, ggml_half d, uint8_t qs[QK2_0 / 4]
    GgmlType(name="Q2_0", value=42, block_size=64, type_size=2 + 64 // 4),
)

# Where gguf 0.19.0 and the engine differ: the engine refuses a file written with gguf's 40 bytes.
_ENGINE_DIFFERS = (
    # ggml/src/ggml-common.h:259: block_q8_1 is ggml_half d, s and int8_t qs[QK8_1]; gguf has it with two floats
    GgmlType(name="Q8_1", value=9, block_size=32, type_size=2 + 2 + 32),
)


@cache
def ggml_types() -> Mapping[str, GgmlType]:
    """All types by name. Reads gguf's constants without gguf itself, which would import numpy (0.2 s)."""
    newer = {t.name: t for t in _NEWER_THAN_GGUF}
    differs = {t.name: t for t in _ENGINE_DIFFERS}
    known = {
        q.name: GgmlType(name=q.name, value=int(q.value), block_size=sizes[0], type_size=sizes[1])
        for q, sizes in gguf_constants().GGML_QUANT_SIZES.items()
    }
    return {**newer, **known, **differs}


@cache
def ggml_types_by_value() -> Mapping[int, GgmlType]:
    """All types by their number in a file (enum ggml_type)."""
    return {t.value: t for t in ggml_types().values()}


@cache
def gguf_constants() -> ModuleType:
    """The module gguf.constants, loaded without its package: it needs nothing but the standard library (30 ms)."""
    loaded = sys.modules.get("gguf.constants")
    if loaded is not None:
        return loaded
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("gguf")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("gguf", name="gguf")
    name = "quantplan._gguf_constants"
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).with_name("constants.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
