"""Fills the disk in the middle of every step of a build: a clear error each time, and the build goes on afterwards.

    python scripts/full_disk.py

Needs a place of limited size. As root, or where users may have namespaces, a tmpfs is mounted for this process
alone. Elsewhere each tool gets a limit on the size of its files instead (`--limit files`), so that its writes fail
half-way all the same; then the sentence may be another, since the disk itself is not full.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantplan.artifact.receipt import sha256_of
from quantplan.errors import DiskFull, QuantplanError
from quantplan.llama.process import run_tool
from quantplan.pipeline.build import build

PLACE_BYTES = 400 << 20
LIMIT = (
    "import os, resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


class Filling:
    """Runs tools, and lets the one of a named step write no more than so many bytes."""

    def __init__(self, step: str, room_bytes: int, *, disk: bool) -> None:
        self.step, self.room_bytes, self.disk = step, room_bytes, disk
        self.ran: list[str] = []

    def __call__(self, argv: Sequence[str], *, step: str, cwd: Path | None = None, **options: Any) -> Any:
        self.ran.append(step)
        if step != self.step:
            return run_tool(argv, step=step, cwd=cwd, **options)
        assert cwd is not None
        if self.disk:
            with filled(cwd, self.room_bytes):
                return run_tool(argv, step=step, cwd=cwd, **options)
        return run_tool((sys.executable, "-c", LIMIT, str(self.room_bytes), *argv), step=step, cwd=cwd, **options)


@contextlib.contextmanager
def filled(folder: Path, room_bytes: int) -> Iterator[None]:
    """The filesystem of a folder with so much room left. The ballast stays: only who is out of space sees it."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(folder).free - room_bytes
        while free > 0:
            free -= file.write(bytes(min(free, 1 << 20)))
    yield


def request_for(place: Path, **changes: Any) -> Any:
    """A build of the bundled model with every kind of step."""
    from quantplan.cli.build_request import Options, make

    shipped = ROOT / "data/bundled/eval"
    (place / "calibration.txt").write_text((shipped / "sums.txt").read_text()[:200_000])
    options = Options(
        quants=("Q4_K_M",), output=place / "artifacts", texts=(f"a={shipped / 'chat.txt'}",), chunks=4,
        calibration=place / "calibration.txt", calibration_chunks=10, split_max_size="1MB", disk="fast", **changes,
    )  # fmt: skip
    return make("quantplan-tiny", options)


# The step, and how many bytes it may write before the disk is full.
STEPS = (
    ("convert", 3_000_000), ("imatrix", 9_000), ("quantize Q8_0", 1_000_000), ("quantize Q4_K_M", 1_000_000),
    ("split quantplan-tiny-Q4_K_M", 1_200_000), ("evaluate BF16 on a", 700_000), ("evaluate Q4_K_M on a", 700_000),
)  # fmt: skip


def fill_at(place: Path, step: str, room_bytes: int, *, disk: bool) -> str:
    """A build in which one step finds the disk full; room is made afterwards. Returns what is wrong, or nothing."""
    request, said = request_for(place), []
    filling = Filling(step, room_bytes, disk=disk)
    try:
        build(request, tell=lambda name, what: said.append(f"{name}: {what}"), run=filling)
    except DiskFull as error:
        if not str(error).startswith(f"{step}: the disk is full"):
            return f"blames {error}"
    except QuantplanError as error:
        if disk:
            return f"no word of the disk: {error}"
    else:
        return "succeeded on a full disk"
    (request.folder / "ballast").unlink(missing_ok=True)
    if set(filling.ran) != {step}:
        return f"ran {filling.ran}"
    left = [path.name for path in request.folder.iterdir() if path.name.endswith(".partial")]
    return f"left behind: {left}" if left else ""


def all_steps(place: Path, *, disk: bool, steps: Sequence[tuple[str, int]] = STEPS) -> int:
    """One build that finds the disk full at every step in turn, and each time goes on where it was. Its artifact
    must be that of a build that never did. Returns how many went wrong."""
    wrong = 0
    for step, room_bytes in steps:
        build_until(place, step)
        what = fill_at(place, step, room_bytes, disk=disk)
        wrong += bool(what)
        print(f"{step:<30} {what or 'told, and nothing was left behind'}", flush=True)
    found = hashes(place)
    shutil.rmtree(place / "artifacts")
    same = found == hashes(place)
    print(f"the artifact is {'the same as' if same else 'another than'} without a full disk")
    return wrong + (not same)


class Stop(Exception):
    """Raised instead of a step."""


def build_until(place: Path, step: str) -> None:
    """All that comes before a step, so that the step is the first to run."""

    def run(argv: Sequence[str], *, step: str, **options: Any) -> Any:
        if step == last:
            raise Stop
        return run_tool(argv, step=step, **options)

    last = step
    with contextlib.suppress(Stop):
        build(request_for(place), tell=lambda name, what: None, run=run)


def hashes(place: Path) -> dict[str, str]:
    """The finished artifact's files."""
    build(request_for(place), tell=lambda name, what: None)
    return {path.name: sha256_of(path) for path in sorted((place / "artifacts").glob("*-Q4_K_M/*.gguf"))}


def mounted() -> bool:
    """Whether the place may be mounted: then this program is started again inside."""
    ask = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
    with tempfile.TemporaryDirectory() as place:
        words = [*ask, "mount", "-t", "tmpfs", "-o", "size=1m", "none", place]
        try:
            return subprocess.run(words, check=False, capture_output=True, timeout=20).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def start_inside(arguments: Sequence[str]) -> int:
    """This program in a namespace of its own, with a tmpfs of PLACE_BYTES."""
    ask = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
    with tempfile.TemporaryDirectory(prefix="quantplan-full-") as place:
        shell = f'mount -t tmpfs -o size={PLACE_BYTES} none "$0" && exec "$@" --inside "$0"'
        words = [*ask, "sh", "-c", shell, place, sys.executable, str(Path(__file__).resolve()), *arguments]
        return subprocess.run(words, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", choices=("disk", "files"))
    parser.add_argument("--steps", help="only steps whose names contain this")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = tuple(one for one in STEPS if not given.steps or given.steps in one[0])
    if given.inside:
        return 1 if all_steps(given.inside, disk=True, steps=steps) else 0
    if given.limit == "disk" or (given.limit is None and mounted()):
        return start_inside(sys.argv[1:])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    with tempfile.TemporaryDirectory(prefix="quantplan-full-") as place:
        return 1 if all_steps(Path(place), disk=False, steps=steps) else 0


if __name__ == "__main__":
    sys.exit(main())
