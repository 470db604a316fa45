"""Measures a fleet against its promises: 6 builds with 2 jobs share downloads and conversions, within disk and memory.

    python scripts/fleet_bars.py               two models of a hub on loopback x three presets; killed once on the way
    python scripts/fleet_bars.py --synthetic   models of 200 MB instead of the bundled one
    python scripts/fleet_bars.py --kills 10    that many kills, at random moments
    python scripts/fleet_bars.py --narrow      with disk for one build at a time

Exit status 1 when a bar is missed: more than one conversion or one download a model, more than two builds at once,
more bytes on the disk or in memory (not given back by the kernel) than were promised before the work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import psutil
from build_bars import Watcher
from loopback_hub import LoopbackHub

from quantplan.artifact.receipt import sha256_of
from quantplan.places import cache_folder, data_file

QUANTS = ("Q8_0", "Q5_K_M", "Q4_K_M")
MODELS = ("org/One", "org/Two")


@dataclass
class MemoryWatcher:
    """The most anonymous bytes that a process and all below it hold at a time, and the most builds at once."""

    pid: int
    peak_bytes: int = 0
    most_builds: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemoryWatcher:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                family = psutil.Process(self.pid).children(recursive=True)
            except psutil.Error:
                continue
            self.peak_bytes = max(self.peak_bytes, sum(anonymous(one.pid) for one in family))
            self.most_builds = max(self.most_builds, sum(is_build(one) for one in family))


def anonymous(pid: int) -> int:
    """Bytes that the kernel cannot give back (Linux)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def is_build(process: psutil.Process) -> bool:
    """A build, not what it has just forked to become a tool."""
    try:
        parent = process.parent()
        words, above = process.cmdline(), parent.cmdline() if parent else []
    except psutil.Error:
        return False
    return words[1:4] == ["-m", "quantplan", "build"] and above[1:4] != words[1:4]


def model_files(place: Path, *, synthetic: bool, seed: int) -> dict[str, bytes]:
    """A checkpoint as a hub serves it: the bundled one, or 200 MB of random weights."""
    folder = data_file("bundled", "quantplan-tiny")
    if synthetic:
        from toy_models import llama_config, llama_shapes, write_model

        config = llama_config(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16)
        folder = write_model(place / f"model-{seed}", config, llama_shapes(config), seed=seed)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}


def prepare(place: Path, hub: LoopbackHub, *, synthetic: bool = False, chunks: int = 4, **top: Any) -> Path:
    """Two models on the hub, a cache that borrows this host's toolchain, and the build file."""
    for seed, repo in enumerate(MODELS, 1):
        hub.add(repo, model_files(place.parent, synthetic=synthetic, seed=seed), licence="mit")
    (place / "cache").mkdir()
    for name in ("toolchains", "self-tests"):
        if (cache_folder() / name).is_dir():
            (place / "cache" / name).symlink_to(cache_folder() / name)
    (place / "text.txt").write_bytes(data_file("bundled", "eval", "chat.txt").read_bytes())
    told = {
        "jobs": 2, **top, "defaults": {"texts": ["t=text.txt"], "chunks": chunks},
        "matrix": {"models": list(MODELS), "quants": list(QUANTS)},
    }  # fmt: skip
    (place / "fleet.yaml").write_text(json.dumps(told))  # JSON is YAML
    return place / "fleet.yaml"


def environment(place: Path, hub: LoopbackHub) -> dict[str, str]:
    return {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "", "HF_HOME": str(place / "cache" / "hf"),
        "QUANTPLAN_CACHE": str(place / "cache"), "QUANTPLAN_STATE": str(place / "state"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def check(place: Path, hub: LoopbackHub) -> dict[str, Any]:
    """What the fleet promises, before any work."""
    words = [sys.executable, "-m", "quantplan", "fleet", "check", "fleet.yaml", "--json"]
    done = subprocess.run(words, cwd=place, env=environment(place, hub), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)["data"]
    return told


@dataclass
class Run:
    """What was measured of one start. `ended` is the exit status, negative for a kill."""

    ended: int
    told: dict[str, Any]
    said: str
    memory_bytes: int
    most_builds: int


def run(place: Path, hub: LoopbackHub, *, kill_when: Any = None) -> Run:
    """One start of the fleet; killed once `kill_when()` is true. All that it started is gone when this returns."""
    words = [sys.executable, "-m", "quantplan", "fleet", "run", "fleet.yaml", "--json"]
    with (place / "out.json").open("w") as out, (place / "err.txt").open("w") as err:
        child = subprocess.Popen(words, cwd=place, env=environment(place, hub), stdout=out, stderr=err)
        family: list[psutil.Process] = []
        with MemoryWatcher(child.pid) as memory:
            while child.poll() is None:
                if kill_when is not None and kill_when():
                    family = psutil.Process(child.pid).children(recursive=True)
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                time.sleep(0.02)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, f"still there after the kill: {alive}"
    text = (place / "out.json").read_text()
    return Run(child.returncode, json.loads(text) if text else {}, (place / "err.txt").read_text(), memory.peak_bytes,
               memory.most_builds)  # fmt: skip


def conversions(place: Path) -> int:
    """How many conversions began, over all starts, as the builds' logs have it."""
    logs = (place / "artifacts" / ".fleet").glob("*.log")
    return sum(log.read_text().count("convert: running") for log in logs)


def downloads(hub: LoopbackHub) -> int:
    """How often weights were fetched whole: bytes over the wire by the size of the weights."""
    sizes = {file.sha256: file.n_bytes for repo in MODELS for name, file in hub.repositories[repo].files.items()
             if name.endswith(".safetensors")}  # fmt: skip
    sent = sum(one.n_sent for one in hub.log if one.n_sent > 200_000 and "/cdn/" in one.path)
    return round(sent / max(sizes.values()))


def hashes(place: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted((place / "artifacts").glob("*/*.gguf"))}


def all_converted(place: Path) -> bool:
    logs = sorted((place / "artifacts" / ".fleet").glob("*.log"))
    return len(logs) == len(MODELS) and all("convert: done" in log.read_text() for log in logs)


def bars(place: Path, *, synthetic: bool, kills: int, narrow: bool) -> Iterator[tuple[str, bool]]:
    """Each bar in a sentence, and whether it holds."""
    place.mkdir()
    with LoopbackHub() as hub:
        file = prepare(place, hub, synthetic=synthetic)
        promised = check(place, hub)
        if narrow:
            one = max(unit["peak_bytes"] for unit in promised["builds"])
            told = json.loads(file.read_text())
            file.write_text(json.dumps({**told, "max_disk": int(one * 1.6)}))
            promised = check(place, hub)
        memory = most = 0
        with Watcher(place) as disk:
            for number in range(kills):
                at = time.monotonic() + random.uniform(2, 40)
                when = (lambda: all_converted(place)) if kills == 1 else (lambda at=at: time.monotonic() > at)
                one_run = run(place, hub, kill_when=when)
                memory, most = max(memory, one_run.memory_bytes), max(most, one_run.most_builds)
                print(f"  start {number + 1}: ended {one_run.ended}", flush=True)
            last = run(place, hub)
        memory, most = max(memory, last.memory_bytes), max(most, last.most_builds)
        n = len(hashes(place))
        yield f"{n} artifacts, exit status {last.ended}", n == 6 and last.ended in (0, 5)
        converted, fetched = conversions(place), downloads(hub)
        allowed = 2 if kills <= 1 else 2 + kills
        yield f"{converted} conversions begun, {fetched} downloads of weights", converted <= allowed and fetched == 2
        yield f"{most} builds at once", most == (1 if narrow else 2)
        limit = promised["disk_bytes"] + (2 << 20)  # text, build file, logs and what the hub said
        yield f"disk {disk.peak_bytes:,} of {promised['disk_bytes']:,} promised", disk.peak_bytes <= limit
        yield f"memory {memory:,} of {promised['memory_bytes']:,} promised", memory <= promised["memory_bytes"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--kills", type=int, default=1)
    given = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="quantplan-fleet-") as scratch:
        found = bars(Path(scratch) / "run", synthetic=given.synthetic, kills=given.kills, narrow=given.narrow)
        for text, holds in found:
            print(f"{text}  {'ok' if holds else 'MISSED'}", flush=True)
            good = good and holds
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
