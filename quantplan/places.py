"""Where things lie: the data that ships with quantplan, and the user's cache and state folders."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_file(*parts: str) -> Path:
    """A file of data/: inside the installed wheel, or beside the package in a checkout."""
    installed = _PACKAGE / "data"
    return (installed if installed.is_dir() else _PACKAGE.parent / "data").joinpath(*parts)


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value and Path(value).is_absolute() else Path.home() / fallback


def cache_folder() -> Path:
    """What can be made again (toolchains, headers, measurements): $QUANTPLAN_CACHE or $XDG_CACHE_HOME/quantplan."""
    own = os.environ.get("QUANTPLAN_CACHE", "")
    return Path(own) if own else _base("XDG_CACHE_HOME", ".cache") / "quantplan"


def state_folder() -> Path:
    """What cannot be made again (results, saved profiles): $QUANTPLAN_STATE or $XDG_STATE_HOME/quantplan."""
    own = os.environ.get("QUANTPLAN_STATE", "")
    return Path(own) if own else _base("XDG_STATE_HOME", ".local/state") / "quantplan"
