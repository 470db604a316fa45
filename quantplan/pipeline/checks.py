"""What a preflight is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from quantplan import errors
from quantplan.model.facts import ModelFacts
from quantplan.pipeline.disk import BuildSizes, DiskMode, DiskPlan
from quantplan.pipeline.memory_need import MemoryStep
from quantplan.pipeline.needed import Needed
from quantplan.pipeline.presets_check import PresetCheck
from quantplan.pipeline.remote.weights import RemoteWeights
from quantplan.pipeline.vocabulary import Vocabulary


class Level(Enum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer in a sentence. `error` is what a build would raise."""

    name: str
    level: Level
    text: str
    error: errors.QuantplanError | None = None

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "level": self.level.value, "text": self.text,
                "kind": self.error.kind if self.error else None}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be built, and with what."""

    quants: tuple[str, ...]
    baseline: str
    texts: tuple[str, ...]
    n_ctx: int
    n_chunks: int
    output: Path
    converter: Path | None = None  # without it, what only the converter can tell is not checked
    allow_code: bool = False
    allow_pickle: bool = False
    with_imatrix: bool = False
    mode: DiskMode = DiskMode.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The answer. Sizes are exact where `sizes_are_exact`; None where the architecture has no table."""

    model: str
    name: str
    repo: str | None
    revision: str | None
    licence: str | None
    architecture: str | None
    files: tuple[tuple[str, int | None], ...]
    download_bytes: int
    missing_bytes: int
    checks: tuple[Check, ...]
    facts: ModelFacts | None = None
    needed: Needed | None = None
    vocabulary: Vocabulary | None = None
    presets: tuple[PresetCheck, ...] = ()
    sizes: BuildSizes | None = None
    sizes_are_exact: bool = False
    disk: DiskPlan | None = None
    free_bytes: int = 0
    memory: tuple[MemoryStep, ...] = field(default=())
    memory_limit_bytes: int = 0
    remote: RemoteWeights | None = None  # how the weights could be read from the hub, where they can
    is_remote: bool = False  # and they will

    @property
    def remote_bytes(self) -> int:
        """Weights that are read from the hub instead of being downloaded, each byte twice."""
        return self.remote.n_bytes if self.remote is not None and self.is_remote else 0

    @property
    def refusals(self) -> tuple[errors.QuantplanError, ...]:
        return tuple(check.error for check in self.checks if check.error is not None)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(check.text for check in self.checks if check.level is Level.WARNING)

    def to_json(self) -> dict[str, object]:
        sizes, plan = self.sizes, self.disk
        return {
            "model": self.model, "name": self.name, "repo": self.repo, "revision": self.revision,
            "licence": self.licence, "architecture": self.architecture,
            "files": [{"name": name, "bytes": n_bytes} for name, n_bytes in self.files],
            "download_bytes": self.download_bytes, "missing_bytes": self.missing_bytes,
            "remote_bytes": self.remote_bytes,
            "checks": [check.to_json() for check in self.checks],
            "sizes": None if sizes is None else {"BF16": sizes.converted_bytes, **sizes.quants},
            "sizes_are_exact": self.sizes_are_exact,
            "presets": [preset.to_json() for preset in self.presets],
            "disk": None if plan is None else {
                "mode": plan.mode.value, "order": plan.order.value, "peak_bytes": plan.peak_bytes,
                "peak_step": plan.peak_step, "final_bytes": plan.final_bytes, "free_bytes": self.free_bytes,
                "steps": [{"name": s.name, "on_disk_bytes": s.on_disk_bytes} for s in plan.steps],
            },
            "memory": [{"name": s.name, "need_bytes": s.need_bytes, "mapped_bytes": s.mapped_bytes}
                       for s in self.memory],
            "memory_limit_bytes": self.memory_limit_bytes,
        }  # fmt: skip
