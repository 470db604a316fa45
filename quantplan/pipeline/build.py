"""From a Hugging Face folder to judged artifacts: convert, quantize, evaluate, judge, lay out one folder a preset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantplan.artifact.receipt import sha256_of
from quantplan.artifact.results import Verdict
from quantplan.errors import NoDiskSpace
from quantplan.llama.process import Runner, run_tool
from quantplan.pipeline import gate, logits
from quantplan.pipeline.disk import BuildSizes, DiskMode, DiskPlan, disk_plan
from quantplan.pipeline.files import remove, size_of
from quantplan.pipeline.imatrix import take_given
from quantplan.pipeline.lock import locked
from quantplan.pipeline.publish import Built
from quantplan.pipeline.record import Record
from quantplan.pipeline.request import BASELINE, BuildRequest, Workplace, file_stem
from quantplan.pipeline.runner import BuildRunner, Decision, remove_leftovers
from quantplan.pipeline.schedule import IMATRIX, SOURCE, Kind
from quantplan.pipeline.steps import Tell

__all__ = [
    "BASELINE",
    "BuildRequest",
    "Built",
    "build",
    "explain",
    "needs_source",
    "passed",
    "plan_disk",
    "settle_disk",
]

_GIVEN = "given imatrix"


def build(request: BuildRequest, *, tell: Tell, run: Runner = run_tool) -> tuple[Built, ...]:
    """Every asked preset as an artifact folder `<output>/<name>-<QUANT>/`, judged against the 16-bit GGUF.

    Finished steps are not repeated; another build in the same work folder is waited for. Raises NoDiskSpace before
    any work, DiskFull or ToolFailed naming the step that failed.
    """
    plan_disk(request)
    request.output.mkdir(parents=True, exist_ok=True)

    def waiting(pid: int | None) -> None:
        tell("build", f"process {pid} builds in {request.folder}: waiting for it")

    with locked(request.folder, waiting):
        plan = plan_disk(request)  # again: whoever was waited for has used some
        request.folder.mkdir(exist_ok=True)
        remove_leftovers(request.folder)
        work = _workplace(request, tell, run)
        if request.imatrix is not None:
            _take_imatrix(work, request.imatrix)
        runner = BuildRunner(work, plan.actions)
        first = runner.decide()
        for one in first:
            if one.action.kind is Kind.MAKE and not one.runs:
                tell(one.action.name, f"skipped ({one.reason})")
        ran = runner.run()
        runner.space.progress(runner.decide())
        built = tuple(runner.publisher.built(quant, fresh=f"publish {quant}" in ran) for quant in request.quants)
        if request.clean:
            _clean(work, plan)
    return built


def explain(request: BuildRequest, *, tell: Tell) -> tuple[tuple[Decision, ...], DiskPlan]:
    """What a build would do about every step and why, and its use of the disk; nothing is changed."""
    plan = plan_disk(request)
    return BuildRunner(_workplace(request, tell, run_tool), plan.actions).decide(), plan


def needs_source(request: BuildRequest, *, tell: Tell) -> bool:
    """Whether a step that reads the source has to run: else its weights need not be here."""
    try:
        decisions, _ = explain(request, tell=tell)
    except OSError:  # a file whose hash nobody knows is not here
        return True
    return any(one.runs and one.action.kind is Kind.MAKE and SOURCE in one.action.needs for one in decisions)


def _workplace(request: BuildRequest, tell: Tell, run: Runner) -> Workplace:
    folder = request.folder.absolute()
    return Workplace(
        request=request, folder=folder, record=Record(folder / "run.json"), run=run, tell=tell,
        stem=file_stem(request.source.name),
    )  # fmt: skip


def _take_imatrix(work: Workplace, given: Path) -> None:
    """A given importance matrix into the work folder, once."""
    sha256, target = sha256_of(given), work.path(IMATRIX)
    kept = work.record.value(_GIVEN, sha256)
    if kept is None or not target.is_file() or work.record.entry(target).sha256 != kept:
        take_given(given, target)
        work.record.keep(_GIVEN, sha256, work.record.entry(target).sha256)


def _clean(work: Workplace, plan: DiskPlan) -> None:
    """Intermediates go; the record, the logs and the artifacts stay, and prove what has been done."""
    for action in plan.actions:
        if action.makes is not None:
            remove(work.path(action.makes))


def plan_disk(request: BuildRequest) -> DiskPlan:
    """The disk plan that fits, in the mode asked for. Raises NoDiskSpace when none does."""
    sizes = request.sizes or rough_sizes(request)
    there = next(path for path in (request.output, *request.output.absolute().parents) if path.exists())
    made, free = _made_bytes(request.folder), shutil.disk_usage(there).free
    here, here_small = _source_here(request) if sizes.source_bytes else (0, 0)
    may_use, remote_may_use = free + made + here, free + made + here_small
    plan = disk_plan(
        sizes, request.work(), request.disk, free_bytes=may_use,
        remote_free_bytes=remote_may_use if request.remote is not None else None,
    )  # fmt: skip
    counted = made + (here_small if plan.mode is DiskMode.REMOTE else here)
    if plan.peak_bytes > free + counted:
        remote = disk_plan(sizes, request.work(), DiskMode.REMOTE).peak_bytes if request.remote is not None else None
        raise NoDiskSpace(
            path=request.output, need_bytes=plan.peak_bytes - counted, free_bytes=free,
            remote_bytes=remote if remote is not None and remote <= remote_may_use else None,
        )  # fmt: skip
    return plan


def file_names(request: BuildRequest, plan: DiskPlan) -> frozenset[str]:
    """The names in the work folder of all that a plan's peak counts."""
    work = _workplace(request, lambda step, what: None, run_tool)
    return frozenset(work.file_name(action.makes) for action in plan.actions if action.makes is not None)


def settle_disk(request: BuildRequest) -> BuildRequest:
    """The request with its choice made whether the weights are downloaded or read from the hub: what follows depends
    on it. Raises NoDiskSpace."""
    if plan_disk(request).mode is DiskMode.REMOTE:
        return replace(request, disk=DiskMode.REMOTE, source_is_ours=False)
    return replace(request, remote=None)


def _made_bytes(folder: Path) -> int:
    """What earlier runs left in the work folder, and this one need not make again."""
    return sum(size_of(path) for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else 0


def _source_here(request: BuildRequest) -> tuple[int, int]:
    """What of a downloaded source lies on this disk already, broken downloads too; and what of that is no weights."""
    sizes = {
        path.name: path.stat().st_size
        for path in request.source.folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    small = sum(size for name, size in sizes.items() if ".safetensors" not in name or name.endswith(".json"))
    return sum(sizes.values()), small


def rough_sizes(request: BuildRequest) -> BuildSizes:
    """Upper bounds where no exact sizes were given: 16 bits as the source has them, every preset at Q8_0's 8.5 bits."""
    weights = request.source.weight_bytes
    quants = dict.fromkeys((BASELINE, *request.quants), weights * 17 // 32)
    return replace(
        BuildSizes(converted_bytes=weights, quants=quants), logits_bytes=logits_bytes(request),
        mmproj_bytes=weights if request.mmproj else 0,
    )  # fmt: skip


def logits_bytes(request: BuildRequest) -> int:
    """The size of one file of log-probabilities."""
    settings = request.settings
    n_vocab = request.source.n_vocab or 0
    return logits.predicted_bytes(n_ctx=settings.n_ctx, n_vocab=n_vocab, n_chunk=settings.n_chunks)


def passed(built: Sequence[Built]) -> Verdict:
    """The worst verdict of all."""
    return gate.worst([one.judgement.verdict for one in built])
