"""From a Hugging Face folder to judged artifacts: convert, quantize, evaluate, judge, lay out one folder a preset."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry, read_receipt
from quantplan.artifact.results import Result, Verdict, newest_result
from quantplan.errors import BadArtifact, NoDiskSpace
from quantplan.llama import commands, output
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.pipeline import evaluate, gate, logits
from quantplan.pipeline.card import model_card
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.gate import Judgement, Scores
from quantplan.pipeline.layout import Contents, engine_entry, lay_out, source_entry
from quantplan.pipeline.record import Record
from quantplan.pipeline.source import Source
from quantplan.pipeline.steps import PARTIAL, Step, Tell, run_step, shown, verify_gguf

BASELINE = "Q8_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build and how to measure it. `make_plan` plans the finished GGUF for this host, or is None."""

    source: Source
    quants: tuple[str, ...]
    output: Path
    tools: Toolchain
    converter: Path
    corpora: tuple[Corpus, ...]
    settings: commands.EvalSettings
    make_plan: Callable[[Path, str], Plan | None]
    host: Mapping[str, Any]
    clean: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One finished artifact folder and what was found of it. `fresh` is False when nothing had to be done."""

    quant: str
    folder: Path
    file: FileEntry
    judgement: Judgement
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The work folder of one source, and the effects that steps need."""

    request: BuildRequest
    folder: Path
    record: Record
    run: Runner
    tell: Tell

    @property
    def name(self) -> str:
        return self.request.source.name

    def gguf(self, quant: str) -> Path:
        return self.folder / f"{self.name}-{quant}.gguf"


def build(request: BuildRequest, *, tell: Tell, run: Runner = run_tool) -> tuple[Built, ...]:
    """Every asked preset as an artifact folder `<output>/<name>-<QUANT>/`, judged against the 16-bit GGUF.

    Finished steps are not repeated. Raises NoDiskSpace before any work, ToolFailed naming the step that failed.
    """
    _check_space(request)
    folder = request.output / ".work" / request.source.name
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(request=request, folder=folder, record=Record(folder / "run.json"), run=run, tell=tell)
    steps = [_convert(work)]
    quants = dict.fromkeys(quant for quant in (BASELINE, *request.quants) if quant != "BF16")
    entries = {quant: _quantize(work, quant) for quant in quants}
    ready = {quant: _unchanged(work, quant) for quant in request.quants}
    if None in ready.values():
        judged, evaluations, texts = _evaluate(work, tuple(quants), request.quants)
        for quant in request.quants:
            own = (*steps, *([entries[quant]] if quant in entries else []), *evaluations[quant])
            ready[quant] = _finish(work, quant, judged[quant], own, texts)
    if request.clean:
        shutil.rmtree(folder)
    return tuple(built for built in ready.values() if built is not None)


def _check_space(request: BuildRequest) -> None:
    """16-bit file, every preset at most at Q8_0's 8.5 bits, and the log-probabilities of two models at a time."""
    weights = request.source.weight_bytes
    scores = logits.predicted_bytes(
        n_ctx=request.settings.n_ctx, n_vocab=request.source.n_vocab or 0, n_chunk=request.settings.n_chunks
    )
    n_models = 1 + len(set(request.quants) | {BASELINE})
    need = weights + (n_models - 1) * weights * 17 // 32 + 2 * scores
    made = sum(path.stat().st_size for path in (request.output / ".work" / request.source.name).glob("*.gguf"))
    there = next(path for path in (request.output, *request.output.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < need - made:
        raise NoDiskSpace(path=request.output, need_bytes=need - made, free_bytes=free)


def _convert(work: _Work) -> StepEntry:
    source = work.request.source
    link = work.folder / source.name  # the converter derives metadata from the folder's name: never a local path
    if link.is_symlink() or link.exists():
        link.unlink()
    link.symlink_to(source.folder.resolve(), target_is_directory=True)
    target = work.gguf("BF16")
    partial = Path(target.name + PARTIAL)
    argv = commands.convert((sys.executable,), work.request.converter, Path(source.name), partial)
    argv = (*argv, "--model-name", source.name)
    step = Step(
        name="convert", argv=argv, shown_argv=shown(argv, folder=work.folder), output=target.name,
        inputs=tuple(work.record.entry(path.resolve(), name=path.name) for path in source.files),
        tool_build=_converter_build(work.request.converter), verify=verify_gguf,
    )  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def run_offline(argv: Any, **rest: Any) -> Any:
        return work.run(argv, extra_env=offline, **rest)

    entry = run_step(step, folder=work.folder, record=work.record, run=run_offline, tell=work.tell)
    link.unlink()
    return entry


def _converter_build(script: Path) -> str:
    return f"convert_hf_to_gguf {script.parent.parent.name}"


def _quantize(work: _Work, quant: str) -> StepEntry:
    source, target = work.gguf("BF16"), work.gguf(quant)
    argv = commands.quantize(
        work.request.tools.programs["llama-quantize"], Path(source.name), Path(target.name + PARTIAL), quant,
        n_threads=work.request.settings.n_threads,
    )  # fmt: skip
    # The bytes do not depend on the number of threads: it is left out of the fingerprint.
    step = Step(
        name=f"quantize {quant}", argv=argv, shown_argv=shown(argv[:-1], folder=work.folder), output=target.name,
        inputs=(work.record.entry(source),), tool_build=work.request.tools.build.label, verify=verify_gguf,
        progress=_tensors_done(),
    )  # fmt: skip
    return run_step(step, folder=work.folder, record=work.record, run=work.run, tell=work.tell)


def _tensors_done() -> Callable[[str], str | None]:
    def progress(text: str) -> str | None:
        done = output.quantize_progress(text)
        return f"{done[0]} of {done[1]} tensors" if done and (done[0] % 50 == 0 or done[0] == done[1]) else None

    return progress


def _unchanged(work: _Work, quant: str) -> Built | None:
    """The artifact that is there already, when it holds this very file and was judged on these very texts."""
    folder = work.request.output / f"{work.name}-{quant}"
    try:
        receipt, found = read_receipt(folder), newest_result(folder, "gate")
    except BadArtifact:
        return None
    made = work.record.entry(work.gguf(quant)).sha256
    if found is None or receipt.model_file.sha256 != made or found.artifact_sha256 != made:
        return None
    there = folder / receipt.model_file.name
    if not there.is_file() or work.record.entry(there.resolve()).sha256 != made:
        return None
    texts = {(text.name, text.sha256) for text in receipt.texts}
    if texts != {(corpus.name, work.record.entry(corpus.path.resolve()).sha256) for corpus in work.request.corpora}:
        return None
    if found.tool.get("settings") != _told_settings(work.request.settings):
        return None
    judgement = Judgement(verdict=found.verdict, reason="measured before, nothing has changed", metrics=found.metrics)
    return Built(quant=quant, folder=folder, file=receipt.model_file, judgement=judgement, fresh=False)


def _told_settings(settings: commands.EvalSettings) -> dict[str, int]:
    return {"n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
            "n_chunks": settings.n_chunks}  # fmt: skip


def _evaluate(
    work: _Work, quants: tuple[str, ...], asked: tuple[str, ...]
) -> tuple[dict[str, Judgement], dict[str, tuple[StepEntry, ...]], tuple[FileEntry, ...]]:
    """Every preset on every text against the 16-bit file. One text at a time, so that two files of
    log-probabilities are on the disk at most."""
    scores: dict[str, dict[str, Scores]] = {quant: {} for quant in ("BF16", *quants)}
    entries: dict[str, list[StepEntry]] = {quant: [] for quant in ("BF16", *quants)}
    texts = []
    for corpus in work.request.corpora:
        text = work.record.entry(corpus.path.resolve())
        texts.append(replace(text, name=corpus.name))
        base = work.folder / f"BF16-{corpus.name}.logits"
        other = work.folder / f"artifact-{corpus.name}.logits"
        try:
            reference, common = _scored(work, "BF16", corpus, base, text)
            for quant in quants:
                found, entry = _scored(work, quant, corpus, other, text)
                scores[quant][corpus.name] = _compare(reference, found)
                entries[quant] += [common, entry]
            if "BF16" in asked:
                scores["BF16"][corpus.name] = _compare(reference, reference)
                entries["BF16"].append(common)
        finally:
            base.unlink(missing_ok=True)
            other.unlink(missing_ok=True)
    judged = {quant: gate.judge_artifact(scores[quant], scores[BASELINE]) for quant in asked}
    return judged, {quant: tuple(found) for quant, found in entries.items()}, tuple(texts)


def _scored(
    work: _Work, quant: str, corpus: Corpus, target: Path, text: FileEntry
) -> tuple[evaluate.Scored, StepEntry]:
    model = work.gguf(quant)
    scored = evaluate.score(
        work.request.tools.programs["llama-perplexity"], model, corpus, target, work.request.settings,
        run=work.run, tell=work.tell, label=quant,
    )  # fmt: skip
    entry = StepEntry(
        name=f"evaluate {quant} on {corpus.name}", argv=shown(scored.completed.argv, folder=work.folder),
        inputs=(work.record.entry(model), text), output=target.name,
        seconds=round(scored.completed.seconds, 3), peak_rss_bytes=scored.completed.peak_rss_bytes,
    )  # fmt: skip
    return scored, entry


def _compare(reference: evaluate.Scored, artifact: evaluate.Scored) -> Scores:
    tokens = logits.compare(reference.logits, artifact.logits)
    for scored, nll in ((reference, tokens.nll_reference), (artifact, tokens.nll_artifact)):
        evaluate.check_printed(scored, mean_nll=float(nll.mean()), n_clipped=tokens.n_clipped)
    return gate.reduce_scores(tokens)


def _finish(
    work: _Work, quant: str, judgement: Judgement, steps: tuple[StepEntry, ...], texts: tuple[FileEntry, ...]
) -> Built:
    request, source = work.request, work.request.source
    model = work.gguf(quant)
    file = work.record.entry(model)
    engine = engine_entry(request.tools)
    final = request.output / f"{work.name}-{quant}"
    contents = Contents(
        receipt=Receipt(
            files=(file,), quant=quant, tools=engine, steps=steps, texts=texts,
            source=source_entry(steps[0].inputs, repo=source.repo, revision=source.revision, name=source.name),
        ),
        result=Result(
            artifact_sha256=file.sha256, policy=gate.POLICY, verdict=judgement.verdict, metrics=judgement.metrics,
            tool={**engine, "settings": _told_settings(request.settings)}, host=request.host, kind="gate",
            reason=judgement.reason, n_tokens=judgement.n_tokens, findings=judgement.findings,
        ),
        plan=_plan(request, model, quant, file),
        card=model_card(
            name=work.name, quant=quant, base_model=source.repo or source.name, licence=source.licence, file=file,
            engine=request.tools.build.label, verdict=judgement.verdict, reason=judgement.reason,
            metrics=judgement.metrics,
        ),
    )  # fmt: skip
    lay_out(model, final, contents)
    return Built(quant=quant, folder=final, file=file, judgement=judgement, fresh=True)


def _plan(request: BuildRequest, model: Path, quant: str, file: FileEntry) -> Plan | None:
    plan = request.make_plan(model, quant)
    return replace(plan, source={**plan.source, "sha256": file.sha256}) if plan is not None else None


def passed(built: tuple[Built, ...]) -> Verdict:
    """The worst verdict of all."""
    return gate.worst([one.judgement.verdict for one in built])
