"""Where artifacts were laid out, so that they are found again and what they link to is not deleted."""

from __future__ import annotations

import json
from pathlib import Path

from quantplan.artifact.receipt import NAME, write_atomically
from quantplan.places import state_folder

_FILE = "artifacts.json"


def remember(folder: Path) -> None:
    """Adds an artifact's folder. A state folder that cannot be written is no reason to fail."""
    known = [str(path) for path in remembered()]
    here = str(folder.absolute())
    if here in known:
        return
    try:
        state_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(state_folder() / _FILE, json.dumps([*known, here], indent=1))
    except OSError:
        return


def remembered() -> tuple[Path, ...]:
    """The folders that still hold a receipt."""
    try:
        told = json.loads((state_folder() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    paths = (Path(str(one)) for one in told) if isinstance(told, list) else ()
    return tuple(path for path in paths if (path / NAME).is_file())


def artifacts_below(output: Path) -> tuple[Path, ...]:
    """The artifact folders in an output folder, those that were set aside too."""
    try:
        return tuple(sorted(path for path in output.iterdir() if (path / NAME).is_file()))
    except OSError:
        return ()
