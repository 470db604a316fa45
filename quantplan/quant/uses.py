"""Which presets suit which use, with reasons. A rule is a rule of thumb: a measurement of the model itself beats it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quantplan.quant.preset_table import ALIASES


class Use(Enum):
    """What a model is for, as far as the choice of a preset depends on it."""

    GENERAL = "general"
    CODE = "code"
    REASONING = "reasoning"
    AGENTS = "agents"
    CLASSIFICATION = "classification"


EXACTING = frozenset({Use.CODE, Use.REASONING, Use.AGENTS})

_GOOD = frozenset({"F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M"})
_FAIR = frozenset({"Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M"})
_TRAINED = frozenset({"MXFP4_MOE", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A remark on a preset for a use. `advised` is False where the preset should not be taken for it."""

    advised: bool
    why: str


def quality_flags(quant: str, *, use: Use = Use.GENERAL) -> tuple[Flag, ...]:
    """What speaks against a preset for a use, with reasons; empty when nothing does."""
    name = ALIASES.get(quant, quant)
    if name in _GOOD:
        return ()
    if name in _TRAINED:
        return (_trained(name),) if name != "MXFP4_MOE" else ()
    if name.startswith(("Q2", "Q3", "IQ1", "IQ2", "IQ3")):
        return (_low(name, use),)
    if use not in EXACTING:
        return ()
    if name in _FAIR:
        return (Flag(advised=True, why=f"{name} will do for {use.value}, Q5_K_M or Q8_0 is rather advised: {_LONG}"),)
    return (Flag(advised=False, why=f"{use.value} wants at least Q4_K_M, and rather Q5_K_M or Q8_0: {_LONG}"),)


_LONG = "one wrong token spoils a program, a proof or a tool call, and long answers make many"


def _low(name: str, use: Use) -> Flag:
    kept = f"{name} keeps about {next(c for c in name if c.isdigit())} bits a weight"
    if use is Use.CLASSIFICATION:
        return Flag(advised=True, why=f"{kept}: for short answers out of few; check the accuracy on your own data")
    return Flag(advised=False, why=f"{kept}: only for classification; a long answer drifts from what the model says")


def _trained(name: str) -> Flag:
    return Flag(
        advised=False, why=f"{name} is for models that were trained in it: nobody published what it costs others"
    )
