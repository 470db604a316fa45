"""The source of a build brought to this disk: all of a repository that the conversion reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantplan.cli.build_request import Allowed
    from quantplan.pipeline.candidate import Candidate
    from quantplan.pipeline.checks import Preflight
    from quantplan.pipeline.source import Source


def fetch_what_lacks(
    candidate: Candidate, found: Preflight, converter: Path, allowed: Allowed, *, remote: bool
) -> None:
    """All that the conversion reads; with `remote` all but the weights."""
    if remote and found.needed is not None:
        _download(candidate, found.needed.without_weights)
    else:
        fetched(candidate, found, converter, allowed)


def fetched(candidate: Candidate, found: Preflight, converter: Path, allowed: Allowed) -> Source:
    """The repository on this disk: every needed file downloaded and proved, and the folder checked as any other."""
    from quantplan.pipeline.source import open_source

    assert candidate.repository is not None
    assert found.needed is not None
    folder = _download(candidate, found.needed.all)
    source = open_source(folder, name=candidate.name, converter=converter, allow_pickle=allowed.pickle)
    return replace(
        source, repo=candidate.repository.id, revision=candidate.repository.commit, licence=candidate.licence
    )


def _download(candidate: Candidate, names: Sequence[str]) -> Path:
    from quantplan.cli.progress import DownloadBar
    from quantplan.pipeline.download import download

    assert candidate.repository is not None
    assert candidate.hub is not None
    return download(candidate.hub, candidate.repository, names, progress=DownloadBar(candidate.repository.id)).folder
