"""An engine that is kept running: started again when it dies, with back-off and a limit, and ended without breaking
what it is writing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from quantplan.errors import KeepsCrashing, ToolFailed
from quantplan.hardware.processes import started_ticks
from quantplan.llama.process import run_tool, start_tool, stop_tool
from quantplan.serving.drain import stop_accepting, wait_quiet
from quantplan.serving.events import Event, InFlight, Kind, parse_line
from quantplan.serving.launch import NotReady, answers
from quantplan.serving.run_record import RunRecord, remove_record, summed, write_record
from quantplan.serving.runtimes import Launch, Runtime

OnEvent = Callable[[Event], None]
# Ends the engine when this process dies, also by SIGKILL: PR_SET_PDEATHSIG (1) survives execv.
_WITH_PARENT = (
    "import ctypes,os,sys;[os.environ.pop(name,None) for name in sys.argv[1].split(',')];"
    "ctypes.CDLL(None).prctl(1,9);os.execv(sys.argv[2],sys.argv[2:])"
)
_POLL_S = 0.02
_QUIET_S = 0.3
_LAST_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long what may take. A first crash is followed by a start at once; each further one within `window_s` waits
    twice as long as the one before, and more than `n_restarts` of them end it."""

    load_s: float = 600.0
    drain_s: float = 30.0
    stop_s: float = 10.0
    backoff_s: float = 1.0
    backoff_most_s: float = 30.0
    n_restarts: int = 5
    window_s: float = 600.0


@dataclass(slots=True)
class _Seen:
    """What the log of the present process has said."""

    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    buffers: list[dict[str, object]] = field(default_factory=list)
    types: tuple[str, str] | None = None
    in_flight: InFlight = field(default_factory=InFlight)


class Supervisor:
    """One engine by its launch. `start`, then `run` until somebody calls `stop` (from a signal handler or a thread)."""

    def __init__(self, launch: Launch, *, on_event: OnEvent, patience: Patience | None = None,
                 artifact: str | None = None) -> None:  # fmt: skip
        self.launch = launch
        self.ready_s = 0.0
        self._tell, self._patience, self._artifact = on_event, patience or Patience(), artifact
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._seen = _Seen()
        self._stopping = threading.Event()
        self._crashes: deque[float] = deque()

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def url(self) -> str:
        return self.launch.url

    def start(self) -> None:
        """Starts the engine and returns when it is healthy. Raises ToolFailed with its last lines, or NotReady."""
        self._spawn()
        try:
            self._wait_healthy()
            self._set_up()
        except BaseException:
            self._end()
            raise

    def run(self) -> None:
        """Waits; starts the engine again whenever it ends. Returns after `stop`. Raises KeepsCrashing."""
        while not self._stopping.wait(_POLL_S):
            status = self._poll()
            if status is not None and not self._stopping.is_set():
                self._restart(status)
        self._drain()

    def stop(self) -> None:
        """Asks `run` to end the engine: no new connections, the running requests, then the stop."""
        self._stopping.set()

    def _spawn(self) -> None:
        launch = self.launch
        self._seen = _Seen()
        keeper = (sys.executable, "-c", _WITH_PARENT, ",".join(launch.unset)) if sys.platform == "linux" else ()
        argv = (*keeper, *launch.argv)
        self._child = start_tool(argv, step=f"start {launch.runtime.value}", stderr=subprocess.STDOUT,
                                 extra_env=launch.env)  # fmt: skip
        self._event(Kind.STARTED, pid=self._child.pid)
        arguments = (self._child, self._seen)
        self._reader = threading.Thread(target=self._read, args=arguments, name="engine-log", daemon=True)
        self._reader.start()

    def _read(self, child: subprocess.Popen[bytes], seen: _Seen) -> None:
        assert child.stdout is not None
        with child.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", errors="replace").rstrip()
                seen.last.append(line)
                event = parse_line(line) if self.launch.runtime is Runtime.LLAMA_SERVER else None
                if event is None:
                    continue
                seen.in_flight.see(event)
                if event.kind is Kind.BUFFER:
                    seen.buffers.append(dict(event.data))
                elif event.kind is Kind.CACHE and seen.types is None:
                    seen.types = (str(event.data["type_k"]), str(event.data["type_v"]))
                self._tell(event)

    def _wait_healthy(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < self._patience.load_s:
            status = self._poll()
            if status is not None:
                self._join()
                raise ToolFailed(step=f"start {self.launch.runtime.value}", argv=self.launch.argv, returncode=status,
                                 last_lines=tuple(self._seen.last))  # fmt: skip
            if answers(self.launch.url + self.launch.health, key=self.launch.key):
                self.ready_s = time.monotonic() - started
                self._keep_record()
                self._event(Kind.READY, pid=self.pid, seconds=round(self.ready_s, 3), url=self.launch.url)
                return
            if self._stopping.wait(_POLL_S):
                return
        raise NotReady(seconds=self._patience.load_s, last_lines=tuple(self._seen.last))

    def _set_up(self) -> None:
        if self.launch.setup:
            run_tool(self.launch.setup, step="register the model", extra_env=self.launch.env)

    def _keep_record(self) -> None:
        seen = self._seen
        types = seen.types or (None, None)
        write_record(RunRecord(
            pid=self.pid, started_ticks=started_ticks(self.pid), url=self.launch.url,
            runtime=self.launch.runtime.value, argv=self.launch.argv, artifact=self._artifact,
            buffers=summed(seen.buffers), type_k=types[0], type_v=types[1],
        ))  # fmt: skip

    def _restart(self, status: int) -> None:
        """Brings a fallen engine back. Raises KeepsCrashing."""
        while not self._stopping.is_set():
            self._join()
            remove_record(self.pid)
            self._event(Kind.CRASHED, pid=self.pid, status=status, last_lines=list(self._seen.last))
            wait = self._backoff(status)
            self._event(Kind.RESTARTING, wait_s=wait, attempt=len(self._crashes))
            if self._stopping.wait(wait):
                return
            self._spawn()
            try:
                self._wait_healthy()
                return
            except (ToolFailed, NotReady):
                status = self._end()

    def _backoff(self, status: int) -> float:
        now, patience = time.monotonic(), self._patience
        while self._crashes and now - self._crashes[0] > patience.window_s:
            self._crashes.popleft()
        self._crashes.append(now)
        times = len(self._crashes)
        if times > patience.n_restarts:
            raise KeepsCrashing(times=times, seconds=now - self._crashes[0], status=status,
                                last_lines=tuple(self._seen.last))  # fmt: skip
        return 0.0 if times == 1 else min(patience.backoff_s * 2.0 ** (times - 2), patience.backoff_most_s)

    def _drain(self) -> None:
        child = self._child
        if child is not None and child.poll() is None and self.launch.runtime is Runtime.LLAMA_SERVER:
            port = int(self.launch.url.rsplit(":", 1)[1])
            not_closed = stop_accepting(child.pid, port)
            busy = self._seen.in_flight.busy
            self._event(Kind.DRAINING, busy=len(busy), still_accepting=not_closed)
            done = wait_quiet(
                lambda: tuple(busy), ended=lambda: child.poll() is not None, limit_s=self._patience.drain_s,
                quiet_s=_QUIET_S, clock=time.monotonic, sleep=time.sleep,
            )  # fmt: skip
            if not done:
                self._event(
                    Kind.WARNING, text=f"{len(busy)} request(s) were cut off after {self._patience.drain_s:g} s"
                )
        status = self._end()
        self._event(Kind.STOPPED, status=status)

    def _end(self) -> int:
        child = self._child
        assert child is not None
        status = stop_tool(child, grace_s=self._patience.stop_s)
        self._join()
        remove_record(child.pid)
        return status

    def close(self) -> None:
        """Ends the engine at once, whatever it does; nothing where it has ended."""
        if self._child is not None:
            self._end()

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(timeout=5)

    def _poll(self) -> int | None:
        assert self._child is not None
        return self._child.poll()

    def _event(self, kind: Kind, *, text: str = "", **data: object) -> None:
        self._tell(Event(kind=kind, data=data, text=text))
