"""Programs of the system that tests drive. On CI's machine they have to be there; elsewhere their tests are skipped."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

MISSING = "needs a program that is not installed"


def program(name: str, *, package: str, found: str | None = None) -> str:
    """Its path. Fails the test on CI's machine where it is not installed, and skips it elsewhere."""
    own = Path(sys.executable).parent  # what came with a package, where the environment is not on PATH
    path = found or shutil.which(name) or shutil.which(name, path=f"/usr/sbin:/usr/local/sbin:{own}")
    if path is not None:
        return path
    why = f"{MISSING}: {name} ({package})"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
