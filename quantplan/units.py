"""Bytes and the units they are shown in. Sizes are integers everywhere; MiB and GiB exist in shown text only."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": TIB, "tib": TIB, "tb": 1000**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+)(?:\.(\d+))?\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `8GiB`, `24G` (binary), `500MB` (decimal), `1.5 GiB`, `4096`.

    Raises ValueError on anything else. Fractions are computed in integers, rounded down.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[3].lower() not in _FACTORS:
        raise ValueError(f"not a size: {text!r}")
    factor = _FACTORS[match[3].lower()]
    fraction = match[2] or ""
    scaled = int(match[1] + fraction) * factor
    return scaled // int(10 ** len(fraction))


def format_mib(n_bytes: int) -> str:
    """`12,345 MiB`, rounded up so that a need never reads smaller than it is."""
    return f"{-(-n_bytes // MIB):,} MiB"


def format_size(n_bytes: int) -> str:
    """Bytes in the largest binary unit that leaves at least one whole: `7.4 GiB`, `612.0 MiB`, `20 B`."""
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(n_bytes) >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} B"


def pad(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value` (GGML_PAD)."""
    return -(-value // multiple) * multiple
