"""What the limits are relative to: Q8_0 of the same model, the floor, and the preset that the artifact claims to be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quantplan.artifact.results import Finding, Severity
from quantplan.errors import NoDiskSpace, ToolFailed
from quantplan.llama import commands
from quantplan.llama.process import Runner
from quantplan.llama.types import Toolchain
from quantplan.model.gguf_header import GgufHeader, read_gguf_header
from quantplan.pipeline import statistics
from quantplan.pipeline.logits import TokenScores
from quantplan.pipeline.pair import SIXTEEN_BIT, Pair
from quantplan.pipeline.policy import Policy
from quantplan.pipeline.statistics import Errors
from quantplan.pipeline.steps import PARTIAL, Tell, verify_gguf
from quantplan.pipeline.verdict import CorpusScores

_COMPARE_BYTES = 16 * 1024**2


class Baselines:
    """Makes the models that are compared with, when they are first asked for, and tells which are."""

    def __init__(
        self, pair: Pair, *, policy: Policy, tools: Toolchain, work: Path, known: Mapping[str, Path],
        against: Path | None, n_threads: int,
        tell: Tell, run: Runner,
    ) -> None:  # fmt: skip
        self._pair, self._policy, self._tools, self._work = pair, policy, tools, work
        self._known, self._n_threads, self._tell, self._run = dict(known), n_threads, tell, run
        self._floor_of: str | None = None  # None until the first run shows what gives one: micro-batch | F16
        self._label_of: Path | None = against
        self._found: list[Finding] = []
        unknown = pair.label in (None, *SIXTEEN_BIT)
        self._no_label = not policy.needs_label or (unknown and against is None)
        if policy.needs_label and pair.label is None and against is None:
            self._cannot_check_label("the file does not say which preset it is")

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._found)

    def check_space(self, scores_bytes: int) -> None:
        """Raises NoDiskSpace when the models to be made and the log-probabilities do not fit."""
        weights = self._pair.reference.stat().st_size
        need = scores_bytes
        if self._policy.needs_q8_0 and "Q8_0" not in self._known:
            need += weights * 17 // 32
        if not self._no_label and self._pair.label not in (*self._known, "Q8_0"):
            need += weights * 17 // 32
        if self._policy.needs_floor and "F16" not in self._known:
            need += weights
        free = shutil.disk_usage(self._work).free
        if free < need:
            raise NoDiskSpace(path=self._work, need_bytes=need, free_bytes=free)

    def roles(self, corpus: str, before: CorpusScores | None, errors: Errors) -> tuple[str, ...]:
        """Which baselines the next slice of a corpus is to be measured on."""
        wanted = {"q8_0": self._policy.needs_q8_0, "floor": self._policy.needs_floor, "label": not self._no_label}
        asked = tuple(role for role, yes in wanted.items() if yes)
        if before is None:
            return asked
        return tuple(role for role in asked if role == "label" or self._matters(role, corpus, before, errors))

    def _matters(self, role: str, corpus: str, before: CorpusScores, errors: Errors) -> bool:
        """Whether a limit may still be the relative one: the factor times the baseline's upper bound."""
        damage = getattr(before, role)
        for name, limit in self._policy.limits(corpus).items():
            factor = limit.of_q8_0 if role == "q8_0" else limit.of_floor
            if factor <= 0 or damage is None:
                continue
            found = statistics.bounds(name, damage, low_tail=errors.wrong_pass, high_tail=errors.wrong_fail)
            if factor * found.high > limit.absolute:
                return True
        return False

    def model(self, role: str, settings: commands.EvalSettings) -> tuple[Path, commands.EvalSettings]:
        """The file of a baseline and how it is run: as everything, but for a floor of another micro-batch."""
        if role == "q8_0":
            return self._made("Q8_0"), settings
        if role == "label":
            return self._label(), settings
        if self._floor_of == "F16":
            return self._made("F16"), settings
        return self._pair.reference, replace(settings, n_ubatch=max(32, settings.n_ubatch // 4))

    def seen(self, role: str, tokens: TokenScores) -> bool:
        """Takes note of what a run showed, and says whether it must be run again: a micro-batch that changes no bit
        is no floor, and then 16 bits of another kind are."""
        if role != "floor" or self._floor_of is not None:
            return False
        again = not tokens.kld.any() and self._pair.reference_type in ("BF16", "F32")
        self._floor_of = "F16" if again else "micro-batch"
        return again

    def _made(self, quant: str) -> Path:
        """The reference at a preset, made once."""
        if quant in self._known:
            return self._known[quant]
        target = self._work / f"baseline-{quant}.gguf"
        partial = target.with_name(target.name + PARTIAL)
        self._tell(f"quantize {quant}", "running: the limits are relative to it")
        argv = commands.quantize(
            self._tools.programs["llama-quantize"], self._pair.reference, partial, quant, n_threads=self._n_threads
        )
        try:
            self._run(argv, step=f"quantize {quant}")
            verify_gguf(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        self._known[quant] = target
        return target

    def _label(self) -> Path:
        """The claimed preset, made here; the artifact itself where its weights are the very same."""
        if self._label_of is None:
            assert self._pair.label is not None
            made = self._made(self._pair.label)
            same = same_weights(made, self._pair.artifact)
            self._tell(f"compare with {self._pair.label}", "the same weights" if same else "other weights")
            self._label_of = self._pair.artifact if same else made
        return self._label_of

    def prepare(self) -> None:
        """Makes the claimed preset, or notes why there is none (some need an importance matrix)."""
        if self._no_label:
            return
        try:
            self._label()
        except ToolFailed:
            self._no_label = True
            self._cannot_check_label(f"{self._pair.label} cannot be made here without an importance matrix")

    def _cannot_check_label(self, why: str) -> None:
        self._found.append(Finding(
            rule="gate/label-not-checked", severity=Severity.NOTE, file=self._pair.artifact.name,
            message=f"whether it is as good as its label says was not measured: {why}",
        ))  # fmt: skip


def same_weights(a: Path, b: Path) -> bool:
    """Whether two GGUFs hold the same tensors, bit for bit; what their keys say does not count."""
    ours, theirs = read_gguf_header(a), read_gguf_header(b)
    mine, other = ({t.name: t for t in header.tensors} for header in (ours, theirs))
    if mine.keys() != other.keys() or len(ours.shards) > 1 or len(theirs.shards) > 1:
        return False
    if any((mine[name].type_name, mine[name].shape) != (other[name].type_name, other[name].shape) for name in mine):
        return False
    return all(
        _same_bytes(a, ours, mine[name].offset, b, theirs, other[name].offset, n=mine[name].n_bytes) for name in mine
    )


def _same_bytes(
    a: Path, a_header: GgufHeader, a_offset: int, b: Path, b_header: GgufHeader, b_offset: int, *, n: int
) -> bool:  # fmt: skip
    with a.open("rb") as one, b.open("rb") as two:
        one.seek(a_header.data_offset + a_offset)
        two.seek(b_header.data_offset + b_offset)
        left = n
        while left:
            size = min(left, _COMPARE_BYTES)
            if one.read(size) != two.read(size):
                return False
            left -= size
    return True
