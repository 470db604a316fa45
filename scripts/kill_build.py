"""Kills builds of the bundled model at random moments, resumes each, and holds it to one that was left alone.

    python scripts/kill_build.py --kills 60

SIGKILL goes to the whole process group of the build. Each time: no tool may outlive it, the same command must end
in the same bytes (the GGUF, and the receipt but for times and memory), and no step that had finished may run again.
Exit status 1 when one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME, QUANTS = "quantplan-tiny", ("Q4_K_M",)
_RUNNING = re.compile(r"^(.+): running \(")


@dataclass
class Build:
    """One run of the command in a folder, with what it said."""

    folder: Path
    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    reader: threading.Thread | None = None

    def ended(self) -> int:
        """Its exit status, when it has ended and all it said is read."""
        status = self.process.wait(timeout=600)
        if self.reader is not None:
            self.reader.join(timeout=10)
        return status

    @property
    def ran(self) -> list[str]:
        return [match[1] for _, line in self.lines if (match := _RUNNING.match(line))]

    def wait_for(self, step: str, *, timeout_s: float = 300) -> bool:
        """Until a step begins; False when the build ended without it."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if step in self.ran:
                return True
            if self.process.poll() is not None:
                return step in self.ran
            time.sleep(0.005)
        raise TimeoutError(f"{step} did not begin")


def arguments(folder: Path) -> list[str]:
    """Two texts and an importance matrix: every kind of step."""
    words = [sys.executable, "-m", "quantplan", "build", NAME, "--chunks", "4", "--disk", "fast", "--json"]
    words += [word for quant in QUANTS for word in ("--quant", quant)]
    words += ["--calibration", str(folder.parent / "calibration.txt"), "--calibration-chunks", "20"]
    return [*words, *(w for name in ("a", "b") for w in ("--text", f"{name}={folder.parent / name}.txt"))]


def start(folder: Path) -> Build:
    """Starts the command in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        arguments(folder), cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    build = Build(folder=folder, process=process)

    def read() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                build.lines.append((time.monotonic(), line.rstrip("\n")))

    build.reader = threading.Thread(target=read, daemon=True)
    build.reader.start()
    return build


def finish(build: Build) -> None:
    """To its end; any gate verdict will do, an error will not."""
    status = build.ended()
    if status not in (0, 4, 5):
        raise RuntimeError(f"status {status}: " + "\n".join(line for _, line in build.lines[-12:]))


def survivors(folder: Path) -> list[str]:
    """Programs that still work in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()).startswith(str(folder)):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120])
    return found


def finished_steps(folder: Path) -> dict[str, str]:
    """Steps that are recorded, with the hash of what they made."""
    try:
        told = json.loads((folder / "artifacts/.work" / NAME / "run.json").read_text())
    except FileNotFoundError:
        return {}
    return {step["entry"]["name"]: step["output"]["sha256"] for step in told["steps"].values()}


def artifacts(folder: Path) -> dict[str, Any]:
    """What must be the same: hashes of the files, and the receipts without times and memory."""
    from quantplan.artifact.receipt import sha256_of

    found: dict[str, Any] = {}
    for quant in QUANTS:
        place = folder / "artifacts" / f"{NAME}-{quant}"
        found[quant] = {path.name: sha256_of(path) for path in place.glob("*.gguf")}
        receipt = json.loads((place / "artifact.json").read_text())
        for step in receipt["steps"]:
            step["seconds"] = step["peak_rss_bytes"] = None
        found[f"{quant} receipt"] = receipt
        verdicts = [json.loads(path.read_text()) for path in sorted((place / "results").glob("gate-*.json"))]
        found[f"{quant} verdict"] = [verdicts[-1]["verdict"], verdicts[-1]["metrics"]]
        found[f"{quant} names"] = sorted(path.name for path in place.iterdir() if path.name != "results")
    return found


def kill(build: Build) -> None:
    """SIGKILL to the process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(build.process.pid, signal.SIGKILL)
    build.ended()


def once(folder: Path, step: str | None, after_s: float, expected: dict[str, Any]) -> str:
    """One build, killed after_s into a step (or into the whole), and resumed. Returns what is wrong, or nothing."""
    build = start(folder)
    if step is None or build.wait_for(step):
        time.sleep(after_s)
    was_alive = build.process.poll() is None
    kill(build)
    for _ in range(100):
        if not (left := survivors(folder)):
            break
        time.sleep(0.02)
    if left:
        return f"outlived: {left}"
    done = finished_steps(folder)
    again = start(folder)
    finish(again)
    repeated = sorted(set(again.ran) & set(done))
    if repeated:
        return f"repeated: {repeated}"
    if artifacts(folder) != expected:
        return "another artifact"
    leftovers = [path.name for path in folder.rglob("*.partial*")]
    return f"left behind: {leftovers}" if leftovers else ("" if was_alive else "-")


def prepare(place: Path) -> tuple[dict[str, Any], list[tuple[str | None, float]]]:
    """The texts, a build that is left alone, and how long its steps took."""
    shipped = ROOT / "data/bundled/eval"
    for name, text in (("a", "chat"), ("b", "code")):
        shutil.copy(shipped / f"{text}.txt", place / f"{name}.txt")
    (place / "calibration.txt").write_text((shipped / "sums.txt").read_text()[:200_000])
    started = time.monotonic()
    build = start(place / "alone")
    finish(build)
    whole = time.monotonic() - started
    took: list[tuple[str | None, float]] = [(None, whole)]
    begins = [(at, match[1]) for at, line in build.lines if (match := _RUNNING.match(line))]
    for i, (at, step) in enumerate(begins):
        end = begins[i + 1][0] if i + 1 < len(begins) else started + whole
        took.append((step, end - at))
    return artifacts(place / "alone"), took


def run(kills: int, *, seed: int, place: Path) -> int:
    """All of it. Returns how many went wrong."""
    sys.path.insert(0, str(ROOT))
    expected, took = prepare(place)
    chance = random.Random(seed)
    wrong = missed = 0
    for i in range(kills):
        step, seconds = took[i % len(took)]
        after_s = chance.uniform(0, 1.1 * seconds)
        folder = place / f"kill-{i:03d}"
        what = once(folder, step, after_s, expected)
        missed += what == "-"
        wrong += what not in ("", "-")
        print(f"{i + 1:3d}  {step or 'the whole':<28} after {after_s:6.2f} s  {what or 'the same'}", flush=True)
        shutil.rmtree(folder)
    print(f"{kills} kills ({missed} came after the end): {wrong} wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantplan-kill-") as place:
        return 1 if run(given.kills, seed=given.seed, place=Path(place)) else 0


if __name__ == "__main__":
    sys.exit(main())
