"""From finished files and scores to an artifact folder: receipt, verdict, plan and card."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import MMPROJ_PREFIX, FileEntry, Receipt, StepEntry, read_receipt
from quantplan.artifact.results import Result, newest_result, read_result
from quantplan.errors import BadArtifact
from quantplan.llama import commands
from quantplan.pipeline import gate, scoring
from quantplan.pipeline.card import model_card
from quantplan.pipeline.convert import converter_versions, kept_how_read, source_entries
from quantplan.pipeline.files import hash_of_list, members
from quantplan.pipeline.gate import Judgement, Scores
from quantplan.pipeline.imatrix import COVERAGE, calibration_entry, coverage, without_data_sentence
from quantplan.pipeline.layout import Contents, engine_entry, lay_out, source_entry
from quantplan.pipeline.request import BASELINE, Workplace
from quantplan.pipeline.schedule import CONVERTED, IMATRIX, MMPROJ, REFERENCE, Action, Kind, model_key


class Finished(Protocol):
    """What a publisher asks the runner for."""

    @property
    def actions(self) -> tuple[Action, ...]: ...
    def entry(self, key: str) -> FileEntry: ...
    def scores(self, action: Action) -> Scores | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One finished artifact folder and what was found of it. `fresh` is False when nothing had to be done."""

    quant: str
    folder: Path
    file: FileEntry
    judgement: Judgement
    fresh: bool
    notes: tuple[str, ...] = ()  # what the work itself showed: tensors in another type, experts without data


class Publisher:
    """Lays out artifact folders of one build."""

    def __init__(self, work: Workplace, finished: Finished) -> None:
        self._work, self._finished = work, finished

    def outdated(self, action: Action) -> str | None:
        """Why a preset's artifact must be laid out (again), or None when it holds these very files, judged on these
        very texts."""
        assert action.subject is not None
        work, folder = self._work, self._work.request.artifact_folder(action.subject)
        try:
            receipt = read_receipt(folder)
        except BadArtifact as error:
            return f"no artifact there: {error}" if folder.exists() else "no artifact there"
        files = [
            work.record.entry(folder / one.name) if (folder / one.name).is_file() else None for one in receipt.files
        ]
        if [one and one.sha256 for one in files] != [one.sha256 for one in receipt.files]:
            return "its artifact's files have changed"
        if self._finished.entry(model_key(work.request.work(), action.subject)).sha256 not in _hashes(receipt.files):
            return "its artifact is of other files"
        if not any(self._is_ours(result, receipt.model_file) for result in _gate_results(folder)):
            return "its artifact was not judged on these texts with these settings"
        return None

    def _is_ours(self, found: Result, file: FileEntry) -> bool:
        """Whether a result is of this file, by the policy, texts and settings of this build. Others may have come
        later, and the receipt keeps the texts of the first."""
        same_file = found.artifact_sha256 == file.sha256
        told = {key: found.tool.get(key) for key in ("settings", "texts")}
        return same_file and found.policy == gate.POLICY and told == self._judged_with()

    def _judged_with(self) -> dict[str, Any]:
        return {
            "settings": told_settings(self._work.request.settings),
            "texts": {text.name: text.sha256 for text in self._texts()},
        }

    def built(self, quant: str, *, fresh: bool) -> Built:
        """The artifact as it lies there."""
        folder = self._work.request.artifact_folder(quant)
        receipt, found = read_receipt(folder), newest_result(folder, "gate")
        assert found is not None
        judgement = self._judge(quant) if fresh else None
        judgement = judgement or Judgement(
            verdict=found.verdict, reason="measured before, nothing has changed", metrics=found.metrics
        )
        return Built(
            quant=quant, folder=folder, file=receipt.model_file, judgement=judgement, fresh=fresh,
            notes=_notes(receipt),
        )  # fmt: skip

    def publish(self, action: Action) -> None:
        """Judges a preset and lays its artifact folder out."""
        assert action.subject is not None
        quant, work, request = action.subject, self._work, self._work.request
        judgement = self._judge(quant)
        models = members(work.path(model_key(request.work(), quant)))
        paths = (*models, *([work.path(MMPROJ)] if request.mmproj else []))
        files = tuple(work.record.entry(path) for path in paths)
        receipt = self._receipt(quant, files)
        contents = Contents(
            receipt=receipt, plan=self._plan(models[0], quant, files[0]), result=self._result(judgement, files[0]),
            card=model_card(receipt, name=request.source.name, licence=request.source.licence,
                            engine=request.tools.build.label, judgement=judgement),
        )  # fmt: skip
        lay_out(paths, request.artifact_folder(quant), contents)
        for path in paths:
            work.record.linked(path)
        work.record.write()

    def _judge(self, quant: str) -> Judgement:
        scores: dict[str, dict[str, Scores]] = {}
        for action in self._finished.actions:
            if action.kind is Kind.COMPARE and action.subject in (quant, BASELINE):
                found = self._finished.scores(action)
                assert found is not None
                assert action.text is not None
                scores.setdefault(action.subject, {})[action.text] = found
        return gate.judge_artifact(scores[quant], scores[BASELINE])

    def _receipt(self, quant: str, files: tuple[FileEntry, ...]) -> Receipt:
        work, request = self._work, self._work.request
        source, overrides = request.source, request.overrides
        tools = {**engine_entry(request.tools), "converter": converter_versions()}
        entries = source_entries(work)
        read = kept_how_read(work, entries)
        return Receipt(
            files=files, quant=quant, tools=tools, steps=self._steps(quant), texts=self._texts(),
            source=source_entry(
                entries, repo=source.repo, revision=source.revision, name=source.name, read=read
            ),
            calibration=calibration_entry(work), imatrix=self._imatrix(files),
            fallbacks=fallbacks_of(work, quant),
            overrides=asdict(overrides) if overrides.flags() else None,
        )  # fmt: skip

    def _steps(self, quant: str) -> tuple[StepEntry, ...]:
        """The finished steps that this artifact rests on, in order."""
        found = []
        for action in self._finished.actions:
            if action.kind is Kind.MAKE and action.makes and action.subject in (None, REFERENCE, quant):
                done = self._work.record.known(self._work.file_name(action.makes))
                found += [done.entry] if done else []
        return tuple(found)

    def _texts(self) -> tuple[FileEntry, ...]:
        return tuple(scoring.text_entry(self._work, corpus) for corpus in self._work.request.corpora)

    def _imatrix(self, files: tuple[FileEntry, ...]) -> Mapping[str, Any] | None:
        if not self._work.request.work().imatrix:
            return None
        sha256 = self._finished.entry(IMATRIX).sha256
        told = self._work.record.value(COVERAGE, sha256)
        if told is None:
            told = asdict(coverage(self._work.path(IMATRIX)))
        return {"sha256": sha256, **told}

    def _plan(self, model: Path, quant: str, file: FileEntry) -> Plan | None:
        plan = self._work.request.make_plan(model, quant)
        return replace(plan, source={**plan.source, "sha256": file.sha256}) if plan is not None else None

    def _result(self, judgement: Judgement, file: FileEntry) -> Result:
        request = self._work.request
        tool = {**engine_entry(request.tools), **self._judged_with()}
        return Result(
            artifact_sha256=file.sha256, policy=gate.POLICY, verdict=judgement.verdict, metrics=judgement.metrics,
            tool=tool, host=request.host, kind="gate", reason=judgement.reason, n_tokens=judgement.n_tokens,
            findings=judgement.findings, reference_sha256=self._finished.entry(CONVERTED).sha256,
            made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )  # fmt: skip


def _gate_results(folder: Path) -> Iterator[Result]:
    """Every readable gate result of an artifact."""
    for path in sorted((folder / "results").glob("gate-*.json")):
        try:
            yield read_result(path)
        except BadArtifact:
            continue


def _notes(receipt: Receipt) -> tuple[str, ...]:
    notes = []
    if receipt.fallbacks:
        names = ", ".join(receipt.fallbacks[:8]) + (" …" if len(receipt.fallbacks) > 8 else "")
        notes.append(f"{receipt.quant}: {len(receipt.fallbacks)} tensors got another type than the preset's: {names}")
    without = (receipt.imatrix or {}).get("without_data")
    if without:
        notes.append(without_data_sentence(without))
    return tuple(notes)


def told_settings(settings: commands.EvalSettings) -> dict[str, int]:
    """What of the evaluation's settings changes its numbers."""
    return {"n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
            "n_chunks": settings.n_chunks}  # fmt: skip


def _hashes(files: tuple[FileEntry, ...]) -> tuple[str, ...]:
    """What the runner may know the model files as: one file by its hash, a folder of them by that of their list."""
    models = [one for one in files if not one.name.startswith(MMPROJ_PREFIX)]
    own = (models[0].sha256,) if len(models) == 1 else ()
    return (*own, hash_of_list(models))


def fallbacks_of(work: Workplace, quant: str) -> tuple[str, ...]:
    """Tensors that got another type than their preset's, since their rows do not fill its blocks. The shapes in the
    finished file tell it: which type a tensor had before does not matter."""
    from quantplan.model.facts import TensorFacts
    from quantplan.model.gguf_header import read_gguf_header
    from quantplan.quant.presets import PresetRefused, apply_preset

    request = work.request
    if quant == request.converted_as:
        return ()
    header = read_gguf_header(members(work.path(model_key(request.work(), quant)))[0])
    tensors = tuple(
        TensorFacts(name=t.name, shape=t.shape, type_name="F32" if t.type_name == "F32" else "BF16")
        for t in header.tensors
    )
    types = request.overrides
    try:
        made = apply_preset(
            tensors, header.metadata, quant, with_imatrix=request.work().imatrix, pure=types.pure,
            tensor_type_overrides=types.tensor_types, output_tensor_type=types.output_type,
            token_embedding_type=types.embedding_type, leave_output_tensor=types.leave_output,
        )  # fmt: skip
    except PresetRefused:
        return ()
    return made.fallbacks
