"""The checkout's own virtual environment: made once, remade when pyproject.toml changes. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
QUANTPLAN = BIN / "quantplan"


class StageFailed(Exception):
    """A stage ended with a status other than 0."""


def stage(title: str, argv: Sequence[str | Path], *, ok: tuple[int, ...] = (0,)) -> float:
    """Runs one stage in the checkout with its output shown; returns its seconds. Raises StageFailed."""
    words = [str(word) for word in argv]
    print(f"\n=== {title}\n    {' '.join(words)}", flush=True)
    started = time.monotonic()
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    seconds = time.monotonic() - started
    print(f"--- {title}: {seconds:.0f} s", flush=True)
    if status not in ok:
        raise StageFailed(f"{title} ended with status {status}")
    return seconds


def ensure_environment(extra: str) -> float:
    """.venv with quantplan installed from this checkout and the packages of an extra; returns the seconds it took."""
    started = time.monotonic()
    check_python()
    stamp = VENV / f"quantplan-{extra or 'base'}.stamp"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and QUANTPLAN.exists():
        print(f"environment: {VENV.name} is up to date", flush=True)
        return time.monotonic() - started
    target = f".[{extra}]" if extra else "."
    uv = shutil.which("uv")
    if not (BIN / "python").exists():
        make = [uv, "venv", "--seed", VENV] if uv and not _has_venv() else [sys.executable, "-m", "venv", VENV]
        stage("make .venv", make)
    stage(
        f"install quantplan{target[1:]} into .venv",
        [BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", target],
    )
    stamp.write_text(wanted)
    return time.monotonic() - started


DEBIAN_PACKAGES = {
    "chromium": "chromium", "nginx": "nginx-light", "promtool": "prometheus", "systemd-analyze": "systemd",
}  # fmt: skip


def ensure_programs() -> float:
    """The programs of the system that some tests drive: installed on a CI machine of Debian's, elsewhere only named,
    and their tests are skipped. Returns the seconds it took."""
    started = time.monotonic()
    missing = [name for name in DEBIAN_PACKAGES if not shutil.which(name, path=f"{os.environ.get('PATH')}:/usr/sbin")]
    if missing and os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
        words = [*install, *(DEBIAN_PACKAGES[name] for name in missing)]
        try:
            stage(f"install {', '.join(missing)}", words)
        except StageFailed:  # the lists of a fresh image are empty
            stage("update the package lists", ["apt-get", "update", "--quiet"], ok=tuple(range(256)))
            stage(f"install {', '.join(missing)}", words, ok=tuple(range(256)))
    elif missing:
        print(f"not installed: {', '.join(missing)}; the tests that drive them are skipped", flush=True)
    return time.monotonic() - started


def check_python() -> None:
    """Raises StageFailed with what to do when this Python cannot make the environment."""
    if sys.version_info < (3, 10):  # noqa: UP036 - it is here to be told to an older Python
        raise StageFailed(f"Python {sys.version.split()[0]} is too old: quantplan needs 3.10 or newer")
    if not _has_venv() and not shutil.which("uv"):
        raise StageFailed("this Python has no venv module (Debian: apt-get install python3-venv)")


def _has_venv() -> bool:
    import importlib.util

    return importlib.util.find_spec("venv") is not None and importlib.util.find_spec("ensurepip") is not None
