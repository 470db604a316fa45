"""The artifact folder: made beside its final name and renamed there whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantplan.artifact.plan_file import Plan, write_plan
from quantplan.artifact.receipt import (
    FileEntry,
    Receipt,
    read_receipt,
    sha256_of,
    sync_folder,
    write_atomically,
    write_receipt,
)
from quantplan.artifact.registry import remember
from quantplan.artifact.results import Result, write_result
from quantplan.errors import BadArtifact
from quantplan.llama.types import Toolchain
from quantplan.pipeline.files import sync
from quantplan.pipeline.steps import PARTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into an artifact folder beside the model file."""

    receipt: Receipt
    result: Result
    plan: Plan | None
    card: str


def lay_out(files: Sequence[Path], final: Path, contents: Contents) -> None:
    """The folder under its final name. One that is there and holds the same files keeps its receipt and gets one
    more result; another one is set aside, never overwritten. All of it is on the disk before its name is."""
    if _holds(final, contents.receipt.files):
        write_result(final, "gate", contents.result)
        return
    partial = final.with_name(f".{final.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in files:
        _link_or_copy(path, partial / path.name)
    write_receipt(partial, contents.receipt)
    write_result(partial, "gate", contents.result)
    if contents.plan is not None:
        write_plan(partial / "plan.json", contents.plan)
    write_atomically(partial / "README.md", contents.card)
    if final.exists():
        final.rename(set_aside(final))
    partial.rename(final)
    sync_folder(final.parent)
    remember(final)


def engine_entry(tools: Toolchain) -> dict[str, Any]:
    """The engine as receipts and results name it."""
    engine = tools.engine()
    return {"tool": engine.tool, "version": engine.version, "commit": engine.commit,
            "sdist_sha256": engine.sdist_sha256, "options": list(engine.options)}  # fmt: skip


def source_entry(
    files: tuple[FileEntry, ...], *, repo: str | None, revision: str | None, name: str,
    read: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:  # fmt: skip
    """The source as the receipt names it: every file by hash, and how its weights were `read` where never here."""
    listed = [{"name": entry.name, "sha256": entry.sha256, "bytes": entry.bytes} for entry in files]
    told = {"repo": repo, "revision": revision, "name": name, "files": listed}
    return told if read is None else {**told, "read": read}


def _holds(folder: Path, files: tuple[FileEntry, ...]) -> bool:
    """Whether an artifact folder is there whose receipt and files are these very files."""
    try:
        known = read_receipt(folder).files
        return known == files and all(sha256_of(folder / one.name) == one.sha256 for one in known)
    except (BadArtifact, OSError):
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def set_aside(final: Path) -> Path:
    """A free name beside an artifact that makes room for another."""
    n = 1
    while (aside := final.with_name(f"{final.name}.old-{n}")).exists():
        n += 1
    return aside
