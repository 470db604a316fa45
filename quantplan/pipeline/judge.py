"""The gate's measurements: texts by slices, models one after another, until the verdict stands or the budget is spent.

At most two files of log-probabilities lie on the disk at a time, besides those of the reference that a cache keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantplan.artifact.results import Finding, Metric, Severity, Verdict
from quantplan.errors import QuantplanError
from quantplan.llama import commands, output
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.pipeline import baselines, evaluate, logits, pair, statistics, texts, verdict
from quantplan.pipeline.base_cache import BaseCache
from quantplan.pipeline.damage import reduce_scores
from quantplan.pipeline.evaluate import Corpus, Scored, TextTooShort
from quantplan.pipeline.logits import TokenScores
from quantplan.pipeline.pair import Pair
from quantplan.pipeline.policy import Policy
from quantplan.pipeline.steps import Tell
from quantplan.pipeline.texts import Slice
from quantplan.pipeline.verdict import CorpusJudgement, CorpusScores, Judgement

CHARACTERS_A_TOKEN = 3  # where llama-tokenize is not there to count: few, so that a slice is rather too long


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """What to judge, against what, by which policy. `work` is scratch. `known` has presets of the reference that are
    made already; `others` are the metrics of the policy's other sections, judged elsewhere."""

    artifact: Path
    reference: Path
    policy: Policy
    corpora: tuple[Corpus, ...]
    settings: commands.EvalSettings
    tools: Toolchain
    work: Path
    label: str | None = None
    base_cache: Path | None = None
    against: Path | None = None  # another file of the same label, in place of the one made here
    known: Mapping[str, Path] = field(default_factory=dict)
    others: tuple[Metric, ...] = ()
    findings: tuple[Finding, ...] = ()
    pair: Pair | None = None  # where the two have been compared already: it reads both files whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The judgement, and every run of the evaluator it took: (model's role, run)."""

    judgement: Judgement
    runs: tuple[tuple[str, Scored], ...]


class InsaneReference(QuantplanError):
    """The reference itself predicts the text worse than the policy's bound: nothing can be said against it."""

    def __init__(self, *, corpus: str, ppl: float, bound: float) -> None:
        super().__init__(f"the reference's perplexity on {corpus} is {ppl:.4g}, above the bound of {bound:g}")
        self.corpus, self.ppl, self.bound = corpus, ppl, bound


def judge_file(request: JudgeRequest, *, tell: Tell, run: Runner = run_tool) -> Judged:
    """The sequential test of one artifact against its reference.

    Raises NotComparable, DamagedWeights, NoDiskSpace, TextTooShort, BadText before any measurement; ToolFailed or
    BadLogits when the evaluator gave nothing usable in three attempts: then there is no verdict.
    """
    told = request.pair or pair.check_pair(request.reference, request.artifact, label=request.label)
    if request.against is not None:
        pair.check_pair(request.reference, request.against)
    request.work.mkdir(parents=True, exist_ok=True)
    if any(metric.verdict is Verdict.FAIL for metric in request.others):
        judgement = verdict.conclude((), policy=request.policy, others=request.others, findings=request.findings)
        return Judged(judgement=judgement, runs=())
    measuring = _Measuring(request, told, tell=tell, run=run)
    measuring.check_space()
    measuring.baselines.prepare()
    try:
        judged, findings = measuring.all_looks()
    except InsaneReference as error:
        refused = Metric(
            name="ppl_reference", corpus=error.corpus, value=error.ppl, se=None, low=None, high=None,
            limit=error.bound, n=0, limit_is="max", verdict=Verdict.INCONCLUSIVE, reason=str(error),
        )  # fmt: skip
        judgement = verdict.conclude((), policy=request.policy, others=(refused, *request.others),
                                     findings=request.findings)  # fmt: skip
        return Judged(judgement=judgement, runs=tuple(measuring.runs))
    judgement = verdict.conclude(
        judged, policy=request.policy, others=request.others, findings=(*request.findings, *findings)
    )
    return Judged(judgement=judgement, runs=tuple(measuring.runs))


class _Measuring:
    """One judgement in progress."""

    def __init__(self, request: JudgeRequest, told: Pair, *, tell: Tell, run: Runner) -> None:
        self.request, self.pair, self.tell, self.run = request, told, tell, run
        self.program = request.tools.programs["llama-perplexity"]
        self.runs: list[tuple[str, Scored]] = []
        self.cache = BaseCache(request.base_cache, reference=request.reference, tools=request.tools)
        self.errors = verdict.errors_of(request.policy, corpora=[corpus.name for corpus in request.corpora])
        self.slices = {corpus.name: self._cut(corpus) for corpus in request.corpora}
        self.tokens: dict[str, dict[str, TokenScores]] = {}
        self.scores: dict[str, CorpusScores] = {}
        self.baselines = baselines.Baselines(
            told, policy=request.policy, tools=request.tools, work=request.work, known=request.known,
            against=request.against,
            n_threads=request.settings.n_threads, tell=tell, run=run,
        )  # fmt: skip

    def _cut(self, corpus: Corpus) -> tuple[Slice, ...]:
        text, settings = texts.read_text(corpus.path), self.request.settings
        n_tokens = self._count(corpus, text)
        if n_tokens < 2 * settings.n_ctx:
            raise TextTooShort(text=corpus.path.name, n_tokens=n_tokens, need=2 * settings.n_ctx)
        available = n_tokens // settings.n_ctx
        plan = statistics.looks(min(self.request.policy.budget_chunks, max(2, available)))
        return texts.cut(corpus.name, text, n_tokens=n_tokens, n_ctx=settings.n_ctx, looks=plan)

    def _count(self, corpus: Corpus, text: str) -> int:
        program = self.request.tools.programs.get("llama-tokenize")
        if program is not None:
            argv = commands.count_tokens(program, self.request.reference, corpus.path)
            said = self.run(argv, step=f"count tokens of {corpus.name}", check=False)
            found = output.parse_token_count((*said.stdout, *said.stderr))
            if found is not None:
                return found
        return max(len(text) // CHARACTERS_A_TOKEN, 2 * self.request.settings.n_ctx)

    def check_space(self) -> None:
        largest = max(one.n_chunks for slices in self.slices.values() for one in slices)
        scores = self._predicted(largest)
        kept = sum(self._predicted(one.n_chunks) for slices in self.slices.values() for one in slices)
        self.baselines.check_space(2 * scores)
        self.cache.check_space(kept)

    def _predicted(self, n_chunks: int) -> int:
        return logits.predicted_bytes(n_ctx=self.request.settings.n_ctx, n_vocab=self.pair.n_vocab, n_chunk=n_chunks)

    def all_looks(self) -> tuple[tuple[CorpusJudgement, ...], tuple[Finding, ...]]:
        """Look after look over all corpora that are undecided; the first fail ends it."""
        judged: dict[str, CorpusJudgement] = {}
        n_looks = max(len(slices) for slices in self.slices.values())
        for look in range(n_looks):
            for corpus in self.request.corpora:
                slices = self.slices[corpus.name]
                if look >= len(slices) or (look and judged[corpus.name].verdict is Verdict.PASS):
                    continue
                self._measure(corpus, slices[look])
                judged[corpus.name] = self._judge(corpus.name)
                if judged[corpus.name].verdict is Verdict.FAIL:
                    return tuple(judged.values()), self.baselines.findings
        return tuple(judged.values()), (*self.baselines.findings, *self._too_short(judged))

    def _judge(self, corpus: str) -> CorpusJudgement:
        found = verdict.judge_corpus(corpus, self.scores[corpus], self.request.policy, self.errors)
        self.tell(f"judge {corpus}", f"{found.verdict.value} after {found.n_chunks} chunks")
        return found

    def _measure(self, corpus: Corpus, part: Slice) -> None:
        """One slice on the reference and on all that is compared with it."""
        text = Corpus(name=corpus.name, path=self.request.work / f"{part.index}" / corpus.path.name)
        text.path.parent.mkdir(exist_ok=True)
        text.path.write_text(part.text, encoding="utf-8", newline="")
        settings = replace(self.request.settings, n_chunks=part.n_chunks)
        base = self.cache.path(part, settings) or self.request.work / f"reference-{corpus.name}.logits"
        try:
            reference = self._reference(text, base, part, settings)
            found = {"artifact": self._against(reference, "artifact", self.request.artifact, text, settings)}
            for role, model, its_settings in self._compared(corpus.name, settings):
                if role == "label" and model == self.request.artifact:
                    found[role] = found["artifact"]
                else:
                    found[role] = self._against(reference, role, model, text, its_settings)
                    if self.baselines.seen(role, found[role]):
                        other, its_own = self.baselines.model(role, settings)
                        found[role] = self._against(reference, role, other, text, its_own)
        finally:
            if self.request.base_cache is None:
                base.unlink(missing_ok=True)
            text.path.unlink(missing_ok=True)
            text.path.parent.rmdir()
        tokens = self.tokens.setdefault(corpus.name, {})
        for role, more in found.items():
            tokens[role] = logits.join((tokens[role], more)) if role in tokens else more
        self.scores[corpus.name] = CorpusScores(**{role: reduce_scores(all_) for role, all_ in tokens.items()})

    def _compared(
        self, corpus: str, settings: commands.EvalSettings
    ) -> list[tuple[str, Path, commands.EvalSettings]]:  # fmt: skip
        """The baselines of this slice: all at the first look, later those that the limits still hang on."""
        before = self.scores.get(corpus)
        roles = self.baselines.roles(corpus, before, self.errors)
        return [(role, *self.baselines.model(role, settings)) for role in roles]

    def _reference(self, text: Corpus, base: Path, part: Slice, settings: commands.EvalSettings) -> Scored:
        """The reference's scores of a slice, from the cache where they are whole; its sanity at the first slice."""
        kept = self.cache.read(text, base, settings)
        scored = kept or self._score("reference", self.request.reference, text, base, settings)
        if kept is None:
            self.cache.keep(base, part, settings)
        if part.index == 0:
            nll = logits.mean_nll(base)
            bound = self.request.policy.reference_ppl_at_most
            if nll > verdict.log_of(bound):
                raise InsaneReference(corpus=part.corpus, ppl=verdict.exp_of(nll), bound=bound)
        return scored

    def _against(
        self, reference: Scored, role: str, model: Path, text: Corpus, settings: commands.EvalSettings
    ) -> TokenScores:  # fmt: skip
        target = self.request.work / f"{role}-{text.name}.logits"
        try:
            scored = self._score(role, model, text, target, settings)
            tokens = logits.compare(reference.logits, scored.logits)
        finally:
            target.unlink(missing_ok=True)
        for one, nll in ((reference, tokens.nll_reference), (scored, tokens.nll_artifact)):
            evaluate.check_printed(one, mean_nll=float(nll.mean()), n_clipped=tokens.n_clipped)
        return tokens

    def _score(self, role: str, model: Path, text: Corpus, target: Path, settings: commands.EvalSettings) -> Scored:
        scored = evaluate.score(
            self.program, model, text, target, settings, run=self.run, tell=self.tell, label=role
        )  # fmt: skip
        self.runs.append((role, scored))
        return scored

    def _too_short(self, judged: Mapping[str, CorpusJudgement]) -> tuple[Finding, ...]:
        """A text that ended before the verdict stood, and how much of it would have been needed."""
        found = []
        for corpus, one in judged.items():
            if one.verdict is not Verdict.INCONCLUSIVE or one.n_chunks >= self.request.policy.budget_chunks:
                continue
            need = verdict.chunks_needed(one, self.errors)
            n_ctx = self.request.settings.n_ctx
            found.append(Finding(
                rule="gate/text-too-short", severity=Severity.WARNING, file=f"{corpus}.txt",
                message=f"{corpus}: the text gives {one.n_chunks} windows of {n_ctx} tokens; for the asked error rate "
                f"about {need} are needed ({need * n_ctx:,} tokens)",
                help="a longer text of the same domain, or a policy with wider limits",
            ))  # fmt: skip
        return tuple(found)
