"""A GGUF that somebody else made, as an artifact: proved, scanned, held to its label, judged, linked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantplan import errors
from quantplan.artifact.plan_file import Plan, write_plan
from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry, entry_of, read_receipt, write_receipt
from quantplan.artifact.registry import remember
from quantplan.artifact.results import Finding, Result, Severity, Verdict, newest_result, write_result
from quantplan.errors import BadArtifact
from quantplan.model.read import read_model
from quantplan.pipeline.label import LabelCheck, check_label
from quantplan.pipeline.link import Linked, link_file
from quantplan.pipeline.scanning.gguf_file import TemplateScans, scan_header
from quantplan.pipeline.scanning.structure import read_structure
from quantplan.pipeline.steps import PARTIAL
from quantplan.pipeline.verdict import Judgement

Tell = Callable[[str, str], None]
Judge = Callable[[Path, Tell], "Gated | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """GGUF files that lie on this disk, and where they are from. `expected` are hashes that a store or hub told."""

    name: str  # of the artifact's folder and files: <name>.gguf
    label: str  # the quant that it is offered as
    files: tuple[Path, ...]
    names: tuple[str, ...]  # of the files inside the artifact
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None
    held_by: str | None = None
    expected: Mapping[str, str] = field(default_factory=dict)  # name -> sha256
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """What a comparison with a reference gave."""

    judgement: Judgement
    reference: str
    reference_sha256: str
    texts: tuple[FileEntry, ...]
    tool: Mapping[str, Any]
    policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """The artifact folder. `fresh` is False when it was there already, with a verdict."""

    folder: Path
    files: tuple[FileEntry, ...]
    label: LabelCheck
    findings: tuple[Finding, ...]
    judgement: Judgement
    linked: tuple[Linked, ...]
    fresh: bool


def pull(
    found: Finished, *, output: Path, judge: Judge | None, why_unmeasured: str,
    make_plan: Callable[[Path], Plan | None], tools: Mapping[str, Any], host: Mapping[str, Any], tell: Tell,
) -> Pulled:  # fmt: skip
    """Scans, compares with the label, judges where `judge` can, and lays the artifact's folder out.

    Raises ScanFailed for a file that is unsound, BadArtifact where its hash is not what its holder says.
    """
    models = [path for path, name in zip(found.files, found.names, strict=True) if not name.startswith("mmproj-")]
    tell("scan", models[0].name)
    findings = scan_all(found)
    _refuse_unsound(found, findings)
    tell("hash", f"{len(found.files)} file(s)")
    entries = tuple(entry_of(path.resolve(), name=name) for path, name in zip(found.files, found.names, strict=True))
    _check_expected(found, entries)
    label = check_label(read_model(str(models[0])), found.label, file=found.names[0])
    folder = output / found.name
    known = _known(folder, entries)
    if known is not None and (known.verdict is not Verdict.UNMEASURED or judge is None):
        reason = (
            "measured before, nothing has changed" if known.verdict is not Verdict.UNMEASURED else str(known.reason)
        )
        judgement = Judgement(verdict=known.verdict, reason=reason, metrics=known.metrics)
        return Pulled(folder=folder, files=entries, label=label, findings=findings, judgement=judgement, linked=(),
                      fresh=False)  # fmt: skip
    gated = judge(models[0], tell) if judge is not None else None
    judgement = gated.judgement if gated else Judgement(verdict=Verdict.UNMEASURED, reason=why_unmeasured, metrics=())
    results = {
        "gate": _gate_result(entries[0], judgement, gated, host=host, tools=tools),
        "scan": _scan_result(entries[0], (*findings, *label.findings), host=host),
    }
    if known is not None:
        linked: tuple[Linked, ...] = ()
    else:
        receipt = _receipt(found, entries, gated, tools=tools)
        linked = _lay_out(found, folder, receipt, make_plan(models[0]))
    for kind, result in results.items():
        write_result(folder, kind, result)
    return Pulled(folder=folder, files=entries, label=label, findings=findings, judgement=judgement, linked=linked,
                  fresh=True)  # fmt: skip


def scan_all(found: Finished) -> tuple[Finding, ...]:
    """Structure, metadata and template of the model, and of a projector beside it."""
    scanned: list[Finding] = []
    scans = TemplateScans()
    for path, name in zip(found.files, found.names, strict=True):
        if path == found.files[0] or name.startswith("mmproj-"):
            header, told = read_structure(path)
            scanned += told
            if header is not None:
                scanned += scan_header(header, path.name, scans=scans, find_base=lambda _: None)
    return tuple(scanned)


def _refuse_unsound(found: Finished, findings: Sequence[Finding]) -> None:
    unsound = [one for one in findings if one.severity is Severity.ERROR]
    if unsound:
        raise errors.ScanFailed(path=found.files[0], findings=tuple(f"{one.rule}: {one.message}" for one in unsound))


def _check_expected(found: Finished, entries: Sequence[FileEntry]) -> None:
    for entry in entries:
        expected = found.expected.get(entry.name)
        if expected is not None and entry.sha256 != expected:
            why = f"sha256 is {entry.sha256[:16]}…, {found.held_by or 'the hub'} says {expected[:16]}…"
            raise BadArtifact(path=entry.name, why=why)


def _known(folder: Path, entries: Sequence[FileEntry]) -> Result | None:
    """The newest verdict of the artifact that is there, when it is of these very files."""
    try:
        if read_receipt(folder).files != tuple(entries):
            return None
        found = newest_result(folder, "gate")
    except BadArtifact:
        return None
    there = all((folder / entry.name).exists() for entry in entries)
    return found if found is not None and there and found.artifact_sha256 == entries[0].sha256 else None


def _receipt(
    found: Finished, entries: tuple[FileEntry, ...], gated: Gated | None, *, tools: Mapping[str, Any]
) -> Receipt:
    listed = [{"name": entry.name, "sha256": entry.sha256, "bytes": entry.bytes} for entry in entries]
    step = StepEntry(
        name="pull", argv=("quantplan", "pull", found.repo or found.name), inputs=entries, output=entries[0].name,
        seconds=round(found.seconds, 3), peak_rss_bytes=None,
    )  # fmt: skip
    source = {
        "repo": found.repo, "revision": found.revision, "name": found.name, "files": listed, "pulled": True,
        "held_by": found.held_by, "licence": found.licence,
    }  # fmt: skip
    texts = gated.texts if gated else ()
    return Receipt(files=entries, quant=found.label, source=source, tools=tools, steps=(step,), texts=texts)


def _gate_result(
    file: FileEntry, judgement: Judgement, gated: Gated | None, *, host: Mapping[str, Any], tools: Mapping[str, Any]
) -> Result:
    return Result(
        artifact_sha256=file.sha256, policy=gated.policy if gated else None, verdict=judgement.verdict,
        metrics=judgement.metrics, tool={**tools, **(gated.tool if gated else {})}, host=host, kind="gate",
        reason=judgement.reason, findings=judgement.findings, n_tokens=judgement.n_tokens,
        reference_sha256=gated.reference_sha256 if gated else None, made_at=_now(),
    )  # fmt: skip


def _scan_result(file: FileEntry, findings: tuple[Finding, ...], *, host: Mapping[str, Any]) -> Result:
    worst = Verdict.FAIL if any(one.severity is Severity.ERROR for one in findings) else Verdict.PASS
    return Result(
        artifact_sha256=file.sha256, policy=None, verdict=worst, metrics=(), tool={"tool": "quantplan scan"},
        host=host, kind="scan", findings=findings, made_at=_now(),
    )  # fmt: skip


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _lay_out(found: Finished, folder: Path, receipt: Receipt, plan: Plan | None) -> tuple[Linked, ...]:
    """The folder, made beside its final name. Another artifact of that name is set aside, never overwritten."""
    from quantplan.pipeline.layout import set_aside

    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    linked = tuple(link_file(path, partial / name) for path, name in zip(found.files, found.names, strict=True))
    how = [{"name": name, "kind": one.kind, "why": one.why} for name, one in zip(found.names, linked, strict=True)]
    write_receipt(partial, replace(receipt, source={**receipt.source, "linked": how}))
    if plan is not None:
        sha256 = receipt.model_file.sha256
        write_plan(partial / "plan.json", replace(plan, source={**plan.source, "sha256": sha256}))
    if folder.exists():
        folder.rename(set_aside(folder))
    partial.rename(folder)
    remember(folder)
    return linked
