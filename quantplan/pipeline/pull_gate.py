"""The gate of a pulled GGUF: its log-probabilities against those of a reference, text by text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.receipt import entry_of
from quantplan.llama import commands
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.pipeline import evaluate, gate, logits
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.gate import Estimate, Judgement, Scores
from quantplan.pipeline.layout import engine_entry
from quantplan.pipeline.pull import Gated

Tell = Callable[[str, str], None]
_NONE = Estimate(mean=0.0, se=0.0, n=0)
# A reference that is Q8_0 itself has no measured floor: the limit is then the absolute part alone.
NO_FLOOR = Scores(kld=_NONE, ln_ppl_ratio=_NONE, same_top=_NONE, rms_delta_p=0.0, ppl_reference=0.0, ppl_artifact=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a file is held against. With a 16-bit one the damage of Q8_0 sets the limit."""

    path: Path
    quant: str  # BF16, F16, F32 or Q8_0
    told: str  # where it is from

    @property
    def is_16_bit(self) -> bool:
        return self.quant in ("BF16", "F16", "F32")


def judge_against(
    reference: Reference, model: Path, *, label: str, tools: Toolchain, corpora: Sequence[Corpus],
    settings: commands.EvalSettings, work: Path, tell: Tell, run: Runner = run_tool,
) -> Gated:  # fmt: skip
    """The verdict of a model. Log-probabilities lie in `work` while they are needed, two files at a time."""
    work.mkdir(parents=True, exist_ok=True)
    floor = _floor(reference, model, label=label, tools=tools, settings=settings, work=work, tell=tell, run=run)
    scores: dict[str, Scores] = {}
    floors: dict[str, Scores] = {}
    base, other = work / "reference.logits", work / "other.logits"
    program = tools.programs["llama-perplexity"]
    try:
        for corpus in corpora:

            def scored(path: Path, target: Path, what: str, corpus: Corpus = corpus) -> evaluate.Scored:
                return evaluate.score(program, path, corpus, target, settings, run=run, tell=tell, label=what)

            first = scored(reference.path, base, reference.quant)
            scores[corpus.name] = _compare(first, scored(model, other, label))
            if floor is None:
                floors[corpus.name] = NO_FLOOR
            elif floor == model:
                floors[corpus.name] = scores[corpus.name]
            else:
                floors[corpus.name] = _compare(first, scored(floor, other, "Q8_0"))
    finally:
        base.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
        if floor is not None and floor.parent == work:
            floor.unlink(missing_ok=True)
    judged = gate.judge_artifact(scores, floors)
    against = f"{judged.reason}; against {reference.told}"
    if floor is None:
        against += ", itself quantized, so the damage of Q8_0 is not counted"
    return Gated(
        judgement=Judgement(verdict=judged.verdict, reason=against, metrics=judged.metrics), reference=reference.told,
        reference_sha256=entry_of(reference.path.resolve()).sha256,
        texts=tuple(entry_of(corpus.path.resolve(), name=corpus.name) for corpus in corpora),
        tool={**engine_entry(tools), "settings": _told(settings), "reference": reference.told},
    )  # fmt: skip


def _floor(
    reference: Reference, model: Path, *, label: str, tools: Toolchain, settings: commands.EvalSettings, work: Path,
    tell: Tell, run: Runner,
) -> Path | None:  # fmt: skip
    """Q8_0 of the same model: made here from a 16-bit reference; the file itself where it is Q8_0."""
    if not reference.is_16_bit:
        return None
    if label == "Q8_0":
        return model
    target = work / "floor-Q8_0.gguf"
    target.unlink(missing_ok=True)
    tell("quantize Q8_0", "the floor that the limit is set by")
    program = tools.programs["llama-quantize"]
    run(commands.quantize(program, reference.path, target, "Q8_0", n_threads=settings.n_threads), step="quantize Q8_0")
    return target


def _compare(reference: evaluate.Scored, artifact: evaluate.Scored) -> Scores:
    tokens = logits.compare(reference.logits, artifact.logits)
    for scored, nll in ((reference, tokens.nll_reference), (artifact, tokens.nll_artifact)):
        evaluate.check_printed(scored, mean_nll=float(nll.mean()), n_clipped=tokens.n_clipped)
    return gate.reduce_scores(tokens)


def _told(settings: commands.EvalSettings) -> dict[str, int]:
    return {"n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
            "n_chunks": settings.n_chunks}  # fmt: skip
