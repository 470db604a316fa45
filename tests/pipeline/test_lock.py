"""One build a work folder; the lock ends with its process, however that ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from quantplan.pipeline.lock import holder, locked

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom quantplan.pipeline.lock import locked\n"
    "with locked(Path(sys.argv[1]), lambda pid: None):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    other = hold(folder)
    try:
        assert holder(folder) == other.pid
        waited_for: list[int | None] = []
        threading.Timer(0.5, other.kill).start()
        started = time.monotonic()
        with locked(folder, waited_for.append):
            assert time.monotonic() - started > 0.3
        assert waited_for == [other.pid]
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()


def test_a_free_folder_has_no_holder_and_nobody_is_waited_for(tmp_path: Path) -> None:
    assert holder(tmp_path / "work") is None
    waited: list[int | None] = []
    with locked(tmp_path / "work", waited.append):
        assert waited == []
    assert holder(tmp_path / "work") is None
