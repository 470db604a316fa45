"""The gate of a pulled GGUF: the sequential test of `pipeline.judge` against a reference that could be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import entry_of, sha256_of
from quantplan.llama import commands
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.judge import JudgeRequest, judge_file
from quantplan.pipeline.layout import engine_entry
from quantplan.pipeline.policy import Policy
from quantplan.pipeline.pull import Gated
from quantplan.pipeline.steps import Tell
from quantplan.pipeline.verdict import Judgement
from quantplan.quant.preset_table import PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a file is held against. A Q8_0 is widened to 16 bits first; its own damage then stays uncounted."""

    path: Path
    quant: str  # BF16, F16, F32 or Q8_0
    told: str  # where it is from

    @property
    def is_16_bit(self) -> bool:
        return self.quant in ("BF16", "F16", "F32")


def judge_against(
    reference: Reference, model: Path, *, label: str, tools: Toolchain, corpora: tuple[Corpus, ...],
    settings: commands.EvalSettings, policy: Policy, work: Path, tell: Tell, run: Runner = run_tool,
) -> Gated:  # fmt: skip
    """The verdict of a model. What it takes lies in `work` and is deleted with it.

    Raises NotComparable where the reference is of another model, and what `judge_file` raises.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = reference.path.resolve() if reference.is_16_bit else _widened(reference, tools, work, tell, run)
    request = JudgeRequest(
        artifact=model.resolve(), reference=path, policy=policy, corpora=corpora, settings=settings, tools=tools,
        work=work, label=label if label in PRESETS else None,
    )  # fmt: skip
    judged = judge_file(request, tell=tell, run=run).judgement
    against = f"{judged.reason}; against {reference.told}"
    if not reference.is_16_bit:
        against += ", itself quantized: its own damage is not counted"
    return Gated(
        judgement=Judgement(verdict=judged.verdict, reason=against, metrics=judged.metrics, findings=judged.findings,
                            n_tokens=judged.n_tokens),
        reference=reference.told, reference_sha256=sha256_of(reference.path.resolve()), policy=policy.label,
        texts=tuple(entry_of(corpus.path.resolve(), name=corpus.name) for corpus in corpora),
        tool={**engine_entry(tools), "reference": reference.told,
              "settings": {"n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
                           "budget_chunks": policy.budget_chunks}},
    )  # fmt: skip


def _widened(reference: Reference, tools: Toolchain, work: Path, tell: Tell, run: Runner) -> Path:
    """The quantized reference as a 16-bit file: the values that it has, written wider."""
    target = work / "reference-BF16.gguf"
    target.unlink(missing_ok=True)
    tell("widen the reference", f"{reference.quant} to BF16")
    argv = commands.quantize(tools.programs["llama-quantize"], reference.path.resolve(), target, "BF16", n_threads=2)
    run(_allowing_requantization(argv, tools), step="widen the reference")
    return target


def _allowing_requantization(argv: tuple[str, ...], tools: Toolchain) -> tuple[str, ...]:
    n = len(tools.programs["llama-quantize"])
    return (*argv[:n], "--allow-requantize", *argv[n:])
