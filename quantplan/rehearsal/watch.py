"""Watches a running server: its lines, and the most memory it took."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path
from typing import IO

_READY = re.compile(r"server is listening|all slots are idle")


class Watch:
    """Reads both pipes; `look` samples the kernel's counters."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.lines: list[str] = []
        self.ready = threading.Event()
        self._child = child
        self._anonymous: int | None = None
        self._resident: int | None = None
        self._gpu: dict[int, int] = {}
        self._readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True)
                         for pipe in (child.stdout, child.stderr) if pipe is not None]  # fmt: skip
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _read(self, pipe: IO[bytes]) -> None:
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip("\n")
            self.lines.append(line)
            if _READY.search(line):
                self.ready.set()

    def look(self, *, gpus: bool = False) -> None:
        """One sample of /proc, and of the GPUs when asked: that costs more."""
        status = _status(self.pid)
        self._anonymous = _larger(self._anonymous, status.get("RssAnon"))
        self._resident = _larger(self._resident, status.get("VmHWM"))
        for index, used in _gpu_memory(self.pid).items() if gpus else ():
            self._gpu[index] = max(self._gpu.get(index, 0), used)

    def peaks(self) -> tuple[int | None, int | None]:
        """Most anonymous, most resident bytes seen."""
        return self._anonymous, self._resident

    def gpu_peaks(self) -> tuple[int | None, ...]:
        return tuple(self._gpu.get(i) for i in range(max(self._gpu, default=-1) + 1))

    def close(self) -> None:
        for reader in self._readers:
            reader.join(timeout=5)
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()


def _larger(known: int | None, new: int | None) -> int | None:
    return new if known is None else known if new is None else max(known, new)


def _status(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(RssAnon|VmHWM|VmRSS):\s+(\d+) kB", text, re.MULTILINE)}


def _gpu_memory(pid: int) -> dict[int, int]:
    """Bytes of each GPU that the process holds, where the driver tells."""
    from quantplan.hardware.detect import detect_host

    return {
        index: process.used_bytes
        for index, gpu in enumerate(detect_host().gpus)
        for process in gpu.processes or ()
        if process.pid == pid and process.used_bytes is not None
    }
