"""The source of a build before its files are here: a repository's files by the hashes that the hub tells.

So a build whose conversion is done needs no weights any more, and those it downloads are not hashed a second time.
"""

from __future__ import annotations

import hashlib

from quantplan.artifact.receipt import FileEntry
from quantplan.model.hf_config import architecture_of
from quantplan.pipeline.candidate import Candidate
from quantplan.pipeline.download import source_folder
from quantplan.pipeline.needed import Needed
from quantplan.pipeline.preflight import MAX_SMALL_FILE_BYTES
from quantplan.pipeline.source import Source


def planned_source(candidate: Candidate, needed: Needed) -> Source:
    """The folder as it will be. Small files are read from the hub (and kept), large ones known by their sha256."""
    repository = candidate.repository
    assert repository is not None
    folder = source_folder(repository)
    known: dict[str, FileEntry] = {}
    for name in needed.all:
        file = repository.file(name)
        base = name.rpartition("/")[2]
        if file.sha256 is not None and file.n_bytes is not None:
            known[base] = FileEntry(name=base, sha256=file.sha256, bytes=file.n_bytes)
        elif name not in needed.weights:
            content = candidate.files.read(name, max_bytes=MAX_SMALL_FILE_BYTES)
            known[base] = FileEntry(name=base, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    config = candidate.checkpoint.config
    named = config.get("architectures")  # of the whole model: what sees is asked for its projector by this name
    return Source(
        folder=folder, name=candidate.name,
        architecture=str(named[0]) if isinstance(named, list) and named else architecture_of(config),
        config=dict(candidate.checkpoint.config), files=tuple(folder / name for name in needed.all),
        weight_bytes=sum(repository.file(name).n_bytes or 0 for name in needed.weights), repo=repository.id,
        revision=repository.commit, licence=candidate.licence, known=known,
    )  # fmt: skip
