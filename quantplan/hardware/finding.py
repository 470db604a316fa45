"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """BREAKS: a plan would not run as planned. HURTS: it runs slower or dies later. NOTE: worth knowing."""

    BREAKS = "breaks"
    HURTS = "hurts"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to change: `fix` is a command to type, or None where there is none."""

    check: str
    severity: Severity
    reason: str
    fix: str | None
