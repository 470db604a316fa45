"""Measures a build against its promises: peak disk in all modes, overhead over the bare tools, own memory, same bytes.

    python scripts/build_bars.py disk overhead same
    python scripts/build_bars.py disk --synthetic      a model of 200 MB instead of the bundled one

Exit status 1 when a bar is missed: peak disk within 2 % + 16 MiB of the promise, overhead under 3 % or 2 s of wall
time, own peak memory under 200 MB, one sha256 for all builds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from quantplan.artifact.receipt import sha256_of
from quantplan.cli.build_request import Options, make
from quantplan.llama.process import run_tool
from quantplan.pipeline.build import build, plan_disk
from quantplan.units import MIB

MODES = ("fast", "tight", "remote")
SLACK_BYTES = 16 * MIB


def options_for(place: Path, *, output: Path | None = None, **changes: Any) -> Options:
    """Two presets and two texts of the bundled model with an importance matrix; one of each of a large one."""
    shipped = ROOT / "data/bundled/eval"
    calibration = place / "calibration.txt"
    calibration.write_text((shipped / "sums.txt").read_text()[:200_000])
    values: dict[str, Any] = {
        "quants": ("Q4_K_M", "IQ3_XXS"), "texts": (f"a={shipped / 'chat.txt'}", f"b={shipped / 'code.txt'}"),
        "chunks": 4,
        "calibration": calibration, "calibration_chunks": 10, "output": output or place / "artifacts", **changes,
    }  # fmt: skip
    return Options(**values)


def _less(synthetic: bool) -> dict[str, Any]:
    shipped = ROOT / "data/bundled/eval"
    return (
        {"quants": ("Q4_K_M",), "texts": (f"a={shipped / 'chat.txt'}",), "calibration_chunks": 2} if synthetic else {}
    )


class Watcher:
    """The most bytes that lie below a folder at a time, a hard link counted once."""

    def __init__(self, folder: Path, *, every_s: float = 0.004) -> None:
        self.folder, self.every_s, self.peak_bytes = folder, every_s, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.every_s):
            self.peak_bytes = max(self.peak_bytes, sum(dict(self._files(self.folder)).values()))

    def _files(self, folder: Path) -> Iterator[tuple[int, int]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._files(Path(entry.path))
                    elif not entry.is_symlink():
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_ino, status.st_size
        except OSError:
            return


def model_of(place: Path, *, synthetic: bool) -> str:
    """The bundled model, or one of 200 MB: 8 layers, 1,024 wide."""
    if not synthetic:
        return "quantplan-tiny"
    from toy_models import llama

    folder = place / "synthetic-200MB"
    if not folder.exists():
        llama(folder, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16)
    return str(folder)


def disk(place: Path, *, synthetic: bool, modes: Sequence[str] = MODES) -> bool:
    """Peak disk by a watcher against the plan that was printed before the work."""
    good = True
    for mode in modes:
        home = place / f"disk-{mode}"
        watched = _watched_remote if mode == "remote" else _watched
        promised, measured, own = watched(place, home, mode, synthetic)
        off = measured - promised
        inside = abs(off) <= 0.02 * promised + SLACK_BYTES
        good = good and inside
        what = f"{mode:<6} promised {promised:>13,}  measured {measured:>13,}  {100 * off / promised:+.2f} %"
        what += f"  {'ok' if inside else 'MISSED'}; own peak memory until converted {own / 1e6:.0f} MB"
        print(f"disk {what}", flush=True)
        shutil.rmtree(home)
    return good


def _watched(place: Path, home: Path, mode: str, synthetic: bool, model: str | None = None) -> tuple[int, int, int]:
    """(promised, measured) bytes of one build whose all lies below `home`, and the own peak memory when the conversion
    ended."""
    own = 0

    def noting(argv: Sequence[str], **more: Any) -> Any:
        nonlocal own
        done = run_tool(argv, **more)
        if more["step"] == "convert":
            own = _peak_bytes()
        return done

    less, source = _less(synthetic), model or model_of(place, synthetic=synthetic)
    request = make(source, options_for(place, output=home / "artifacts", disk=mode, **less))
    promised = plan_disk(request).peak_bytes
    with Watcher(home) as watcher:
        build(request, tell=lambda name, what: None, run=noting)
    return promised, watcher.peak_bytes, own


def _peak_bytes() -> int:
    """Of this process alone: ru_maxrss begins with what its parent held when it was started."""
    told = Path("/proc/self/status").read_text()
    return 1024 * int(told.split("VmHWM:")[1].split()[0])


def _watched_remote(place: Path, home: Path, mode: str, synthetic: bool) -> tuple[int, int, int]:
    """The same with the model on a hub on loopback. What is downloaded lies below `home` too. The build is a process
    of its own: huggingface_hub reads its endpoint when it is imported."""
    from loopback_hub import LoopbackHub

    from quantplan.places import cache_folder, data_file

    tools, model = cache_folder() / "toolchains", model_of(place, synthetic=synthetic)
    folder = Path(model) if synthetic else data_file("bundled", model)
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "toolchains").symlink_to(tools)
    with LoopbackHub() as hub, multiprocessing.get_context("spawn").Pool(1, _endpoint, (hub.url, home)) as pool:
        hub.add("org/model", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        found = pool.apply(_watched, (place, home, mode, synthetic, "org/model"))
    receipt = json.loads(next((home / "artifacts").glob("*/artifact.json")).read_text())
    fed = next(step["peak_rss_bytes"] for step in receipt["steps"] if step["name"] == "convert")
    print(f"  peak memory of the converter {fed / 1e6:.0f} MB", flush=True)
    return found


def _endpoint(url: str, home: Path) -> None:
    os.environ.update(
        HF_ENDPOINT=url, HF_TOKEN="", HF_HOME=str(home / "cache" / "hf"), QUANTPLAN_CACHE=str(home / "cache")
    )


ROUNDS = 3


def overhead(place: Path, *, synthetic: bool) -> bool:
    """The build against the very same tool runs without it, in processor and wall time: the tools once more before, so
    that all finds the same warm caches, then in turns. The median of the rounds' differences counts."""
    rounds = [_in_a_process_of_its_own(place / f"round-{i}", synthetic) for i in range(ROUNDS + 1)][1:]
    extra, bare = (statistics.median(one[which] for one in rounds) for which in (0, 1))
    own = max(one[2] for one in rounds)
    good, small = extra <= max(2.0, 0.03 * bare), own < 200_000_000
    print(f"overhead: {extra:+.2f} s, {100 * extra / bare:+.1f} % (median of {ROUNDS})  {'ok' if good else 'MISSED'}")
    print(f"own peak memory when the last tool ended: {own / 1e6:.0f} MB  {'ok' if small else 'MISSED'}", flush=True)
    return good and small


def _in_a_process_of_its_own(place: Path, synthetic: bool) -> tuple[float, float, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_round, (place, synthetic, time.monotonic()))


def _round(place: Path, synthetic: bool, started: float) -> tuple[float, float, int]:
    """(seconds more than the bare tools, their seconds, own peak bytes) of one build and the same commands after it.
    `started`: when the process was, so that starting Python and importing count as ours."""
    place.mkdir()
    calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    own, in_tools = 0, 0.0

    def noting(argv: Sequence[str], *, step: str, cwd: Path | None = None, **more: Any) -> Any:
        nonlocal own, in_tools
        calls.append((tuple(argv), {"step": step, "cwd": cwd, **more}))
        done = run_tool(argv, step=step, cwd=cwd, **more)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        in_tools += done.seconds
        return done

    model = model_of(place, synthetic=synthetic)
    used = _used()
    request = make(model, options_for(place, output=place / "overhead", disk="fast", **_less(synthetic)))
    prepared = time.monotonic() - started
    build(request, tell=lambda name, what: None, run=noting)
    wall, spent = time.monotonic() - started, [now - before for now, before in zip(_used(), used, strict=True)]
    bare = _bare(place, request, calls)
    print(f"  build {wall:.2f} s ({prepared:.2f} s before the first step, {in_tools:.2f} s in tools), bare tools "
          f"{bare:.2f} s; own processor time {spent[0]:.2f} s of {sum(spent):.2f} s", flush=True)  # fmt: skip
    return wall - bare, bare, own


def _used() -> tuple[float, float]:
    ours, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return ours.ru_utime + ours.ru_stime, theirs.ru_utime + theirs.ru_stime


def _bare(place: Path, request: Any, calls: Sequence[tuple[tuple[str, ...], dict[str, Any]]]) -> float:
    """The same commands in an empty folder, and the time they took. What lies in the work folder under another name
    while a tool runs (the source, the calibration text) is put there first."""
    folder = place / "bare"
    folder.mkdir()
    (folder / request.source.name).symlink_to(request.source.folder.resolve())
    entry = sha256_of(request.calibration)
    (folder / f"calibration-{entry[:8]}.txt").symlink_to(request.calibration.resolve())
    spent = 0.0
    for argv, more in calls:
        local = tuple(word.replace(str(request.folder.absolute()), str(folder)) for word in argv)
        started = time.monotonic()
        run_tool(local, **{**more, "cwd": folder, "on_text": None})
        spent += time.monotonic() - started
        for path in folder.glob("*.partial"):
            path.replace(path.with_name(path.name.removesuffix(".partial")))
    shutil.rmtree(folder)
    return spent


def same(place: Path, *, synthetic: bool) -> bool:
    """Another folder, HOME, user and number of threads; each preset with and without a matrix: one sha256 each."""
    found: dict[str, set[str]] = {}
    for i, (threads, home) in enumerate(((1, "one"), (2, "another/home"))):
        for calibrated in (True, False):
            output = place / f"same-{i}" / ("deep/" * i) / f"artifacts-{calibrated}"
            for quant, sha256 in _elsewhere(place, output, home, threads, calibrated=calibrated, synthetic=synthetic):
                found.setdefault(f"{quant} {'with' if calibrated else 'without'} a matrix", set()).add(sha256)
    for what, hashes in found.items():
        print(f"{what}: {len(hashes)} sha256: {', '.join(sorted(one[:16] for one in hashes))}", flush=True)
    return all(len(hashes) == 1 for hashes in found.values())


def _elsewhere(
    place: Path, output: Path, home: str, threads: int, *, calibrated: bool, synthetic: bool
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """A build with the command line, in the folder and with the HOME given."""
    shipped = ROOT / "data/bundled/eval"
    (place / home).mkdir(parents=True, exist_ok=True)
    own = place / f"texts-{threads}"  # the texts lie elsewhere, too
    own.mkdir(exist_ok=True)
    shutil.copy(shipped / "chat.txt", own / "t.txt")
    (own / f"c{threads}.txt").write_text((shipped / "sums.txt").read_text()[:200_000])
    words = [sys.executable, "-m", "quantplan", "build", model_of(place, synthetic=synthetic), "--output", str(output)]
    words += ["--text", f"t={own / 't.txt'}", "--chunks", "2", "--threads", str(threads), "--json", "--quant", "Q4_K_M"]
    if calibrated:
        words += ["--calibration", str(own / f"c{threads}.txt"), "--calibration-chunks", "10", "--quant", "IQ3_XXS"]
    env = {**os.environ, "HOME": str(place / home), "USER": home.split("/", maxsplit=1)[0], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, cwd=place / home)
    if not done.stdout:
        raise RuntimeError(done.stderr)
    for one in json.loads(done.stdout)["data"]["artifacts"]:
        file = output / f"{Path(one['folder']).name}" / one["file"]["name"]
        content = file.read_bytes()
        for secret in (str(place), home.split("/", maxsplit=1)[0] + "/", "/data/bundled"):
            assert secret.encode() not in content, f"{file.name} holds {secret}"
        yield one["quant"], sha256_of(file)


BARS: dict[str, Callable[..., bool]] = {"disk": disk, "overhead": overhead, "same": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bars", nargs="*", default=list(BARS), help=", ".join(BARS))
    parser.add_argument("--synthetic", action="store_true")
    given = parser.parse_args()
    good = True
    for bar in given.bars:
        with tempfile.TemporaryDirectory(prefix="quantplan-bars-") as place:
            good = BARS[bar](Path(place), synthetic=given.synthetic) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
