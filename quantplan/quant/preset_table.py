"""The presets that llama-quantize offers: names, numbers, default types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantplan.errors import BadValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One row of QUANT_OPTIONS in tools/quantize/quantize.cpp."""

    name: str
    file_type: str  # LLAMA_FTYPE_MOSTLY_…, an alias resolved
    file_type_id: int  # enum llama_ftype, general.file_type of the result
    default_type: str  # llama_ftype_get_default_type()


# name: (enum llama_ftype, default type); include/llama.h and llama_ftype_get_default_type()
_FILE_TYPES = {
    "Q1_0": (40, "Q1_0"), "Q2_0": (41, "Q2_0"), "Q4_0": (2, "Q4_0"), "Q4_1": (3, "Q4_1"),
    "MXFP4_MOE": (38, "MXFP4"), "Q5_0": (8, "Q5_0"), "Q5_1": (9, "Q5_1"), "IQ2_XXS": (19, "IQ2_XXS"),
    "IQ2_XS": (20, "IQ2_XS"), "IQ2_S": (28, "IQ2_XS"), "IQ2_M": (29, "IQ2_S"), "IQ1_S": (24, "IQ1_S"),
    "IQ1_M": (31, "IQ1_M"), "TQ1_0": (36, "TQ1_0"), "TQ2_0": (37, "TQ2_0"), "Q2_K": (10, "Q2_K"),
    "Q2_K_S": (21, "Q2_K"), "IQ3_XXS": (23, "IQ3_XXS"), "IQ3_S": (26, "IQ3_S"), "IQ3_M": (27, "IQ3_S"),
    "IQ3_XS": (22, "IQ3_S"), "Q3_K_S": (11, "Q3_K"), "Q3_K_M": (12, "Q3_K"), "Q3_K_L": (13, "Q3_K"),
    "IQ4_NL": (25, "IQ4_NL"), "IQ4_XS": (30, "IQ4_XS"), "Q4_K_S": (14, "Q4_K"), "Q4_K_M": (15, "Q4_K"),
    "Q5_K_S": (16, "Q5_K"), "Q5_K_M": (17, "Q5_K"), "Q6_K": (18, "Q6_K"), "Q8_0": (7, "Q8_0"),
    "F16": (1, "F16"), "BF16": (32, "BF16"), "F32": (0, "F32"),
}  # fmt: skip
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

PRESETS: Mapping[str, Preset] = {
    name: Preset(
        name=name,
        file_type=ALIASES.get(name, name),
        file_type_id=_FILE_TYPES[ALIASES.get(name, name)][0],
        default_type=_FILE_TYPES[ALIASES.get(name, name)][1],
    )
    for name in (*_FILE_TYPES, *ALIASES)
}


def preset_named(name: str) -> Preset:
    """The preset of that name, in any case. Raises BadValue with the names there are."""
    found = PRESETS.get(name.upper())
    if found is None:
        raise BadValue(what="preset", value=name, why=f"is none of {', '.join(PRESETS)}")
    return found
