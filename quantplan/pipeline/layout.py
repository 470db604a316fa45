"""The artifact folder: made beside its final name and renamed there whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Plan, write_plan
from quantplan.artifact.receipt import FileEntry, Receipt, read_receipt, write_atomically, write_receipt
from quantplan.artifact.results import Result, write_result
from quantplan.errors import BadArtifact
from quantplan.llama.types import Toolchain
from quantplan.pipeline.steps import PARTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into an artifact folder beside the model file."""

    receipt: Receipt
    result: Result
    plan: Plan | None
    card: str


def lay_out(model: Path, final: Path, contents: Contents) -> None:
    """The folder under its final name. One that is there and holds the same file keeps its receipt and gets one more
    result; another one is set aside, never overwritten."""
    if _holds(final, contents.receipt.model_file):
        write_result(final, "gate", contents.result)
        return
    partial = final.with_name(f".{final.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _link_or_copy(model, partial / model.name)
    write_receipt(partial, contents.receipt)
    write_result(partial, "gate", contents.result)
    if contents.plan is not None:
        write_plan(partial / "plan.json", contents.plan)
    write_atomically(partial / "README.md", contents.card)
    if final.exists():
        final.rename(_set_aside(final))
    partial.rename(final)


def engine_entry(tools: Toolchain) -> dict[str, Any]:
    """The engine as receipts and results name it."""
    engine = tools.engine()
    return {"tool": engine.tool, "version": engine.version, "commit": engine.commit,
            "sdist_sha256": engine.sdist_sha256, "options": list(engine.options)}  # fmt: skip


def source_entry(
    files: tuple[FileEntry, ...], *, repo: str | None, revision: str | None, name: str
) -> Mapping[str, Any]:
    """The source as the receipt names it: every file by hash."""
    listed = [{"name": entry.name, "sha256": entry.sha256, "bytes": entry.bytes} for entry in files]
    return {"repo": repo, "revision": revision, "name": name, "files": listed}


def _holds(folder: Path, file: FileEntry) -> bool:
    """Whether an artifact folder is there whose receipt and GGUF are this very file."""
    try:
        known = read_receipt(folder).model_file
        return known.sha256 == file.sha256 and (folder / known.name).stat().st_size == known.bytes
    except (BadArtifact, OSError):
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _set_aside(final: Path) -> Path:
    n = 1
    while (aside := final.with_name(f"{final.name}.old-{n}")).exists():
        n += 1
    return aside
