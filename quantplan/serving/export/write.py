"""Files of an export on the disk: each whole or not at all, and all of them or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from quantplan.artifact.receipt import sync_folder
from quantplan.errors import BadValue
from quantplan.serving.export.exported import File


def write_files(folder: Path, files: Sequence[File]) -> tuple[Path, ...]:
    """Written beside their places first, then all renamed. Files of the same names are replaced, others left alone.

    Raises BadValue where the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise BadValue(what="folder", value=str(folder), why="is a file")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        renames = [(_written(folder, file, undo), folder / file.name) for file in files]
        for partial, path in renames:
            partial.replace(path)
    sync_folder(folder)
    return tuple(path for _, path in renames)


def _written(folder: Path, file: File, undo: ExitStack) -> Path:
    """The file under a name of its own, synced; gone again if it is not renamed."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise BadValue(what="file", value=str(path), why="is a folder")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    undo.callback(Path(name).unlink, missing_ok=True)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(file.text)
        out.flush()
        os.fsync(out.fileno())
    Path(name).chmod(file.mode)
    return Path(name)
