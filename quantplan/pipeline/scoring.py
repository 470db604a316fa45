"""The runner's side of the evaluation: which files of log-probabilities a step makes, and scores kept as numbers."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry
from quantplan.llama import commands, output
from quantplan.llama.process import Runner
from quantplan.llama.types import Completed
from quantplan.pipeline import evaluate, gate, logits
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.files import members
from quantplan.pipeline.gate import Scores
from quantplan.pipeline.imatrix import tool_build, without_threads
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import CONVERTED, REFERENCE, Action, model_key
from quantplan.pipeline.step_log import log_file
from quantplan.pipeline.steps import Step, shown


def evaluate_step(work: Workplace, action: Action, model: FileEntry) -> Step:
    """llama-perplexity of one model on one text: a file of log-probabilities."""
    request, subject = work.request, action.subject
    assert subject is not None
    assert action.text is not None
    corpus = corpus_named(work, action.text)
    path = _model_file(work, subject)
    target = work.logits(subject, action.text)
    program = request.tools.programs["llama-perplexity"]
    argv = commands.save_logits(program, path, corpus.path, target, request.settings)
    label = request.converted_as if subject == REFERENCE else subject

    def attempt(partial: Path, run: Runner) -> Completed:
        scored = evaluate.score(
            program, path, corpus, partial, request.settings, run=run, tell=_quiet(work), label=label
        )
        return scored.completed

    return Step(
        name=action.name, argv=argv, shown_argv=without_threads(shown(argv, folder=work.folder)),
        inputs=(model, text_entry(work, corpus)), output=target.name, tool_build=tool_build(work), attempt=attempt,
        scratch=True, progress=_chunks(request.settings),
        expected_bytes=request.sizes.logits_bytes if request.sizes else None,
    )  # fmt: skip


def _quiet(work: Workplace) -> Any:
    """The runner tells that a step runs and how far it is; what is left are failed attempts."""
    return lambda step, what: work.tell(step, what) if what.startswith("attempt") else None


def _chunks(settings: commands.EvalSettings) -> Any:
    def progress(text: str) -> str | None:
        done = output.perplexity_progress(text)
        return f"{done} of {settings.n_chunks} chunks" if done is not None else None

    return progress


def _model_file(work: Workplace, subject: str) -> Path:
    """The GGUF that is evaluated: of a split one the first file."""
    path = work.path(CONVERTED if subject == REFERENCE else model_key(work.request.work(), subject))
    return members(path)[0] if path.is_dir() or path.suffix == ".split" else path


def corpus_named(work: Workplace, text: str) -> Corpus:
    """A text by its name, by a path that holds in any folder."""
    found = next(corpus for corpus in work.request.corpora if corpus.name == text)
    return replace(found, path=found.path.resolve())


def text_entry(work: Workplace, corpus: Corpus) -> FileEntry:
    """A text under its own name, by content."""
    return work.record.entry(corpus.path.resolve(), name=corpus.name)


def compare(work: Workplace, action: Action) -> Scores:
    """Two files of log-probabilities as scores; the tool's own printed mean must agree where it was printed."""
    assert action.subject is not None
    assert action.text is not None
    corpus = corpus_named(work, action.text)
    subject = REFERENCE if action.subject == work.request.converted_as else action.subject
    pair = [_scored(work, name, corpus) for name in (REFERENCE, subject)]
    tokens = logits.compare(pair[0].logits, pair[1].logits)
    for scored, nll in zip(pair, (tokens.nll_reference, tokens.nll_artifact), strict=True):
        evaluate.check_printed(scored, mean_nll=float(nll.mean()), n_clipped=tokens.n_clipped)
    return gate.reduce_scores(tokens)


def _scored(work: Workplace, subject: str, corpus: Corpus) -> evaluate.Scored:
    """What an evaluation left: its file, and what its log says."""
    path = work.logits(subject, corpus.name)
    label = work.request.converted_as if subject == REFERENCE else subject
    log = log_file(work.folder, f"evaluate {label} on {corpus.name}")
    try:
        said = tuple(log.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        said = ()
    completed = Completed(argv=(), returncode=0, seconds=0.0, peak_rss_bytes=None, stdout=said, stderr=())
    printed = output.parse_perplexity(said)
    return evaluate.Scored(corpus=corpus, logits=path, completed=completed, printed=printed)


def to_plain(value: Any) -> Any:
    """A dataclass of numbers as JSON."""
    return asdict(value)


def from_plain(kind: Any, told: Any) -> Any:
    """The same dataclass again. Raises TypeError, KeyError or ValueError when the fields are others now."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(told, Mapping) or set(told) != {field.name for field in fields(kind)}:
            raise ValueError(f"is no {kind}")
        return kind(**{name: from_plain(hints[name], value) for name, value in told.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(from_plain(args[0], one) for one in told)
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if told is None else from_plain(inner, told)
    return told
