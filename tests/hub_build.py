"""`quantplan build` as a whole process against a hub on loopback; the bundled model as a repository's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from loopback_hub import Hole, LoopbackHub

from quantplan.places import cache_folder, data_file

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the cat sat on the mat and the dog ran to the door. " * 400


def borrowing_cache(place: Path) -> Path:
    """A cache of its own that borrows the toolchain of this host."""
    own, shared = place / "cache", cache_folder()
    own.mkdir()
    for name in ("toolchains", "self-tests"):
        if (shared / name).is_dir():
            (own / name).symlink_to(shared / name)
    return own


def environment(hub: LoopbackHub, cache: Path, **env: str) -> dict[str, str]:
    own = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "", "QUANTPLAN_CACHE": str(cache), "PYTHONPATH": str(ROOT),
        "HF_HOME": str(cache / "hf"), **env,
    }  # fmt: skip
    own.pop("HF_HUB_CACHE", None)
    return own


def tiny(**changed: bytes | None) -> dict[str, bytes | Hole]:
    """The bundled model's files; `name__ext=…` replaces one, None leaves it out."""
    folder = data_file("bundled", "quantplan-tiny")
    files: dict[str, bytes | Hole] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for key, content in changed.items():
        name = key.replace("__", ".")
        files.pop(name, None)
        if content is not None:
            files[name] = content
    return files


def config(**more: object) -> bytes:
    told = json.loads(data_file("bundled", "quantplan-tiny", "config.json").read_text())
    return json.dumps({**told, **more}).encode()


def build(hub: LoopbackHub, cache: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "quantplan", "build", *words]
    return subprocess.run(
        argv, env=environment(hub, cache, **env), cwd=cache.parent, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], status: int, error: str, hint: str) -> None:
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr == f"Error: {error}\nHint: {hint}\n"
