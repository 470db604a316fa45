"""From what was typed to a judgement: the file and its receipt, its reference, the texts, the result's place."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import NAME, Receipt, sha256_of
from quantplan.artifact.results import Finding, Metric, Result, Severity, Verdict, write_result
from quantplan.artifact.store import check_files, find_artifact
from quantplan.errors import BadModelFile, ExitCode, NoReference, ToolMissing
from quantplan.llama.commands import EvalSettings
from quantplan.llama.process import run_tool, unmaskable_settings
from quantplan.llama.types import Engine, Toolchain
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.judge import JudgeRequest, judge_file
from quantplan.pipeline.policy import Policy
from quantplan.pipeline.sections import Subject, judge_sections
from quantplan.pipeline.steps import Tell
from quantplan.places import cache_folder, data_file, state_folder

ALL_LAYERS = 999
_CODES = {Verdict.PASS: ExitCode.OK, Verdict.FAIL: ExitCode.CHECK_FAILED, Verdict.ERROR: ExitCode.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was typed beside the artifact and the policy."""

    reference: Path | None = None
    source: str | None = None
    baseline: Path | None = None
    plan: Path | None = None
    against: Path | None = None
    label: str | None = None
    base_cache: Path | None = None
    texts: tuple[str, ...] = ()
    chunks: int | None = None
    hellaswag: Path | None = None
    winogrande: Path | None = None
    lm_eval: Path | None = None
    llama: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None
    github: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """A judged file and where its result was written."""

    name: str
    file: Path
    result: Result
    result_file: Path
    engine: Engine
    warnings: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.result.verdict is Verdict.PASS

    @property
    def exit_code(self) -> int:
        return int(_CODES.get(self.result.verdict, ExitCode.INCONCLUSIVE))


def gate(given: Path, policy: Policy, options: Options, *, tell: Tell) -> Gated:
    """Judges one file. Any changed bit of an artifact folder is refused by its hash before anything is measured."""
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.pipeline import pair

    started = time.monotonic()
    rules = replace(policy, budget_chunks=options.chunks) if options.chunks else policy
    model, subject = _subject(given)
    subject = replace(subject, plan=options.plan)
    tools, host = find_toolchain(explicit=options.llama), detect_host()
    if "llama-perplexity" not in tools.programs:
        raise ToolMissing(tool="llama-perplexity", why="is not among the tools")
    settings = EvalSettings(
        n_threads=host.cpu.n_threads, n_gpu_layers=ALL_LAYERS if tools.backend == "cuda" else 0
    )  # fmt: skip
    with _scratch() as work:
        reference = _reference(subject, options, tools, work=work, tell=tell)
        told = pair.check_pair(reference, model, label=_label(options, subject))
        others = judge_sections(
            rules, subject, reference_bytes=reference.stat().st_size, template_kept=told.template_kept,
            baseline=_folder(options.baseline),
        )  # fmt: skip
        corpora, findings = _corpora(options.texts, told, work)
        scores, lost = _tasks(options, model, tools, settings, tell=tell)
        request = JudgeRequest(
            artifact=model, reference=reference, policy=rules, corpora=corpora, settings=settings, tools=tools,
            work=work, label=told.label, base_cache=options.base_cache, others=(*others, *scores),
            findings=(*findings, *lost),
            against=options.against, pair=told,
        )  # fmt: skip
        judgement = judge_file(request, tell=tell).judgement
        reference_sha256 = sha256_of(reference)
    engine = tools.engine()
    result = Result(
        artifact_sha256=subject.sha256, policy=rules.label, verdict=judgement.verdict, metrics=judgement.metrics,
        tool={"tool": engine.tool, "version": engine.version, "commit": engine.commit,
              "sdist_sha256": engine.sdist_sha256, "options": list(engine.options),
              "settings": {"n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
                           "budget_chunks": rules.budget_chunks}},
        host={"fingerprint": host.fingerprint, "cpu": host.cpu.model, "threads": settings.n_threads},
        kind="gate", reason=judgement.reason, n_tokens=judgement.n_tokens, findings=judgement.findings,
        reference_sha256=reference_sha256, made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )  # fmt: skip
    subject.folder.mkdir(parents=True, exist_ok=True)
    written = write_result(subject.folder, "gate", result)
    return Gated(
        name=subject.name, file=model, result=result, result_file=written, engine=engine,
        warnings=(*_recorded(subject, result), *unmaskable_settings()), seconds=time.monotonic() - started,
    )  # fmt: skip


def _subject(given: Path) -> tuple[Path, Subject]:
    """The model file and what is known of it. A plain GGUF's results are kept under its hash in the state folder."""
    folder = given if given.is_dir() else given.parent
    if given.is_dir() or (folder / NAME).is_file():
        found = find_artifact(given)
        check_files(found)
        file = found.receipt.model_file
        return found.model, Subject(
            name=folder.resolve().name, sha256=file.sha256, file_bytes=file.bytes, folder=folder,
            receipt=found.receipt,
        )  # fmt: skip
    if given.suffix != ".gguf":
        raise BadModelFile(path=given, why="is neither an artifact folder nor a GGUF")
    sha256 = sha256_of(given)
    return given, Subject(
        name=given.name, sha256=sha256, file_bytes=given.stat().st_size,
        folder=state_folder() / "gated" / sha256[:16], receipt=None,
    )  # fmt: skip


def _folder(given: Path | None) -> Path | None:
    """The artifact folder of a baseline, which may be named by its receipt."""
    if given is None or given.is_dir():
        return given
    return given.parent


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on the cache's disk: a temporary folder is RAM on many systems."""
    base = cache_folder() / "gate"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield Path(folder)


def _label(options: Options, subject: Subject) -> str | None:
    from quantplan.cli.options import preset

    if options.label:
        return preset(options.label)
    return subject.receipt.quant if subject.receipt else None


def _reference(subject: Subject, options: Options, tools: Toolchain, *, work: Path, tell: Tell) -> Path:
    """The 16-bit GGUF: as given, as the build left it, or made from the source. Raises NoReference."""
    from quantplan.llama.toolchain import converter_script
    from quantplan.model import catalog
    from quantplan.pipeline.reference import left_by_build, make_reference

    if options.reference is not None:
        return options.reference
    if subject.receipt is not None and options.source is None:
        left = left_by_build(subject.folder, subject.receipt)
        if left is not None:
            return left
    source = options.source or _bundled(subject.receipt)
    if source is None:
        raise NoReference(artifact=subject.name, why="none was given, and no build left one")
    entry = catalog.find(source)
    folder = entry.folder if entry is not None and entry.folder is not None else Path(source)
    if not folder.is_dir():
        raise NoReference(artifact=subject.name, why=f"{source} is no local model folder")
    converter = converter_script(tools)
    if converter is None:
        raise ToolMissing(tool="convert_hf_to_gguf.py", why="is not here: it comes with the pinned toolchain")
    return make_reference(folder, work / "reference-BF16.gguf", converter=converter, run=run_tool, tell=tell)


def _bundled(receipt: Receipt | None) -> str | None:
    """The bundled model can always be made again."""
    from quantplan.model.catalog import BUNDLED

    return BUNDLED if receipt is not None and receipt.source.get("name") == BUNDLED else None


def _corpora(given: tuple[str, ...], told: Any, work: Path) -> tuple[tuple[Corpus, ...], tuple[Finding, ...]]:
    """The texts; of those that ship the chat one through the model's own template, or not at all."""
    from quantplan.cli.build_request import corpora
    from quantplan.pipeline import chat
    from quantplan.pipeline.pair import TEMPLATE

    found = corpora(given)
    own = told.reference_header.metadata.get(TEMPLATE)
    shipped = data_file("bundled", "quantplan-tiny", "chat_template.jinja").read_text(encoding="utf-8")
    if given or own == shipped:
        return found, ()
    others = tuple(corpus for corpus in found if corpus.name != "chat")
    text = next(corpus for corpus in found if corpus.name == "chat").path.read_text(encoding="utf-8")
    try:
        if not isinstance(own, str):
            raise chat.TemplateFailed("it has no chat template")
        path = work / "chat.txt"
        path.write_text(chat.render(own, text, bos="", eos=""), encoding="utf-8")
        return (*others, Corpus(name="chat", path=path)), ()
    except chat.TemplateFailed as error:
        note = Finding(rule="gate/chat-not-measured", severity=Severity.WARNING, file=told.artifact.name,
                       message=f"chat was not measured: {error}")  # fmt: skip
        return others, (note,)


def _tasks(
    options: Options, model: Path, tools: Toolchain, settings: EvalSettings, *, tell: Tell
) -> tuple[tuple[Metric, ...], tuple[Finding, ...]]:  # fmt: skip
    """Scores that were asked for beside the gate."""
    from quantplan.pipeline.tasks import read_lm_eval, score_tasks

    metrics: list[Metric] = []
    findings: list[Finding] = []
    for kind, tasks in (("hellaswag", options.hellaswag), ("winogrande", options.winogrande)):
        if tasks is not None:
            scored, lost = score_tasks(kind, tasks, model, tools=tools, settings=settings, run=run_tool, tell=tell)
            metrics += scored
            findings += lost
    if options.lm_eval is not None:
        metrics += read_lm_eval(options.lm_eval)
    return tuple(metrics), tuple(findings)


def _recorded(subject: Subject, result: Result) -> tuple[str, ...]:
    """Into the history; that it could not be written there is a warning, never an error."""
    from quantplan.artifact import history

    if subject.receipt is not None:
        said = history.record_artifact(subject.folder)
    else:
        said = history.record_result(result, kind="gate", model=subject.name)
    return (said,) if said else ()


def ci_files(gated: Gated, how: Mapping[str, Any]) -> list[str]:
    """Writes what a CI asked for; returns the lines that GitHub is to read."""
    if not any(how.get(name) for name in ("junit", "sarif", "markdown", "github")):
        return []
    from quantplan.report.ci import Checked, CiTargets, write_ci_files

    targets = CiTargets(
        junit=how["junit"], sarif=how["sarif"], markdown=how["markdown"], github=bool(how["github"])
    )  # fmt: skip
    checked = Checked(name=gated.name, result=gated.result, file=str(gated.file), seconds=gated.seconds)
    return write_ci_files(targets, (checked,))


def told(gated: Gated) -> dict[str, Any]:
    """The result, and where it lies."""
    return {"name": gated.name, "result": gated.result, "result_file": gated.result_file}
