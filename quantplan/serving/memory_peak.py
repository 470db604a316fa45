"""The most memory a host used while something ran, from its own figures."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from quantplan.hardware.detect import nvidia_traces
from quantplan.hardware.monitor import Sample, watch
from quantplan.hardware.nvml import Pynvml
from quantplan.hardware.tree import HostTree

_INTERVAL_S = 0.5


class MemoryPeak:
    """Samples this host from entry to exit. Of a server elsewhere nothing is known: `local` False samples nothing."""

    def __init__(self, *, local: bool) -> None:
        self._local = local
        self._stop = threading.Event()
        self._samples: list[Sample] = []
        self._thread = threading.Thread(target=self._watch, name="memory-peak", daemon=True)

    def __enter__(self) -> MemoryPeak:
        if self._local:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._local:
            self._thread.join(timeout=5)

    def _watch(self) -> None:
        nvml = Pynvml() if nvidia_traces(HostTree()) else None
        pause = self._stop.wait
        for sample in watch(nvml=nvml, env=os.environ, interval_s=_INTERVAL_S, sleep=lambda s: (pause(s), None)[1]):
            self._samples.append(sample)
            if self._stop.is_set():
                return

    def told(self) -> dict[str, int | None]:
        """Peaks in bytes: of the host, and of each card by its name."""
        if not self._samples:
            return {"host_used_peak_bytes": None}
        peaks: dict[str, int | None] = {"host_used_peak_bytes": max(sample.used_bytes for sample in self._samples)}
        for sample in self._samples:
            for device in sample.devices:
                name = f"{device.name}_used_peak_bytes"
                peaks[name] = max(peaks.get(name) or 0, device.used_bytes)
        return peaks
