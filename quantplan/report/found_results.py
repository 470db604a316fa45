"""The results that artifact folders hold, for a report: the newest of each kind, and never an old one for a new."""

from __future__ import annotations

import re
from pathlib import Path

from quantplan.artifact.history import kind_and_time, whole_time
from quantplan.artifact.results import Finding, Result, Severity, Verdict, read_result
from quantplan.artifact.store import Artifact, check_files, find_artifact
from quantplan.errors import BadArtifact, BadValue
from quantplan.report.checks import Checked

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def checked_results(path: Path, kinds: tuple[str, ...], *, since: str | None = None) -> list[Checked]:
    """A result file as it is; of an artifact the newest result of each kind. One that is missing is unmeasured; one
    that is older than `since` is an error, since whoever asks for it has just measured. A file that is not what its
    receipt says fails whatever its results say. Raises BadArtifact for no artifact, BadValue for a time that is none.
    """
    if since is not None and not _TIME.fullmatch(since):
        raise BadValue(what="time", value=since, why="is not like 2026-11-22T01:02:03Z")
    if path.suffix == ".json" and path.parent.name == "results":
        artifact = find_artifact(path.parent.parent)
        return [_checked(artifact, read_result(path))]
    artifact = find_artifact(path)
    changed = _changed(artifact)
    if changed is not None:
        return [_checked(artifact, changed)]
    return [_checked(artifact, _newest(artifact, kind, since)) for kind in kinds]


def _newest(artifact: Artifact, kind: str, since: str | None) -> Result:
    found = sorted((artifact.folder / "results").glob(f"{kind}-*.json"))
    if not found:
        return _none(artifact, kind, Verdict.UNMEASURED, f"no {kind} result was found")
    result = read_result(found[-1])
    if since is not None and kind_and_time(found[-1].name, result)[1] < whole_time(since):
        return _none(artifact, kind, Verdict.ERROR, f"no {kind} result since {since}: it could not be measured")
    if result.artifact_sha256 != artifact.receipt.model_file.sha256:
        return _none(artifact, kind, Verdict.UNMEASURED, f"the newest {kind} result is about another file")
    return result


def _changed(artifact: Artifact) -> Result | None:
    """A failed result where a file is not what the receipt says; where only the receipt is kept there is no file."""
    if not artifact.model.exists():
        return None
    try:
        check_files(artifact)
    except BadArtifact as error:
        finding = Finding(rule="gate/changed-file", severity=Severity.ERROR, message=error.why, file=error.path)
        return _none(artifact, "gate", Verdict.FAIL, error.why, (finding,))
    return None


def _none(artifact: Artifact, kind: str, verdict: Verdict, reason: str, findings: tuple[Finding, ...] = ()) -> Result:
    return Result(
        artifact_sha256=artifact.receipt.model_file.sha256, policy=None, verdict=verdict, metrics=(), tool={}, host={},
        kind=kind, reason=reason, findings=findings,
    )  # fmt: skip


def _checked(artifact: Artifact, result: Result) -> Checked:
    return Checked(name=artifact.model.stem, result=result, file=_shown(artifact.model))


def _shown(path: Path) -> str:
    """A path as the workspace knows it: relative where it lies inside."""
    here, whole = Path.cwd(), path.absolute()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else whole.as_posix()
