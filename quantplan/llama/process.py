"""The one door to subprocesses. Every tool starts in a clean room: what lies about on the host cannot change it.

llama.cpp's tools read LLAMA_ARG_* and config.ini for every flag that is not written (common/arg.cpp), and GGML_*,
OMP_* and KMP_* variables change kernels, devices and threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from quantplan.errors import ToolFailed
from quantplan.llama.types import Completed
from quantplan.places import cache_folder

SYSTEM_CONFIG = Path("/etc/llama.cpp/config.ini")  # common/arg.cpp: read first, and no variable masks it
_DROPPED = ("LLAMA_", "GGML_", "MTMD_", "OMP_", "GOMP_", "KMP_", "SPACEMIT_", "HF_TOKEN", "XDG_CONFIG_")
_MAX_LINES = 20_000

OnText = Callable[[str, str], None]  # (stdout | stderr, text as it comes, may end in the middle of a line)


class Runner(Protocol):
    """How the layers above run a program; tests pass a small fake."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        step: str,
        cwd: Path | None = None,
        on_text: OnText | None = None,
        timeout_s: float | None = None,
        extra_env: Mapping[str, str] | None = None,
        check: bool = True,
        pass_fds: Sequence[int] = (),
    ) -> Completed: ...


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a tool starts in: the caller's without what would fill unwritten flags."""
    source = os.environ if environ is None else environ
    env = {key: value for key, value in source.items() if not key.startswith(_DROPPED)}
    env["XDG_CONFIG_HOME"] = str(_empty_folder())
    env["GGML_NO_BACKTRACE"] = "1"  # an abort would attach gdb and hang
    env["LC_ALL"] = "C.UTF-8"
    return env


def _empty_folder() -> Path:
    folder = cache_folder() / "clean-room"
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        import tempfile

        return Path(tempfile.mkdtemp(prefix="quantplan-clean-room-"))
    return folder


def unmaskable_settings() -> tuple[str, ...]:
    """Settings files of the system that the clean room cannot keep out: to be reported."""
    return (f"{SYSTEM_CONFIG} sets defaults for every tool and cannot be masked",) if SYSTEM_CONFIG.exists() else ()


def run_tool(
    argv: Sequence[str],
    *,
    step: str,
    cwd: Path | None = None,
    on_text: OnText | None = None,
    timeout_s: float | None = None,
    extra_env: Mapping[str, str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Runs a program to its end in the clean room, in a process group of its own. It inherits `pass_fds` alone.

    Raises ToolFailed when it cannot start, exits non-zero (with `check`) or outlives timeout_s. Whatever ends
    the caller (Ctrl-C, an error in on_text) ends the program first.
    """
    started = time.monotonic()
    child = start_tool(argv, step=step, cwd=cwd, extra_env=extra_env, pass_fds=pass_fds, dies_with_us=True)
    lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
    readers = [_reader(child.stdout, "stdout", lines, on_text), _reader(child.stderr, "stderr", lines, on_text)]
    try:
        returncode, peak = _wait(child, timeout_s)
    except BaseException:
        stop_tool(child)
        raise
    finally:
        for reader in readers:
            reader.join(timeout=5)
    completed = Completed(
        argv=tuple(argv),
        returncode=124 if returncode is None else returncode,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak,
        stdout=tuple(lines["stdout"]),
        stderr=tuple(lines["stderr"]),
    )
    if returncode is None or (check and returncode != 0):
        said = completed.last_lines if returncode is not None else (f"stopped after {timeout_s:.0f} s",)
        raise ToolFailed(step=step, argv=argv, returncode=completed.returncode, last_lines=said)
    return completed


def start_tool(
    argv: Sequence[str],
    *,
    step: str,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    dies_with_us: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a program in the clean room and returns at once. Raises ToolFailed when it cannot be started.

    dies_with_us: it is killed when the thread that started it ends, however that ends (Linux). For the runs that
    this thread waits for: nobody would look at what an orphan goes on writing.
    """
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**clean_environment(), **(extra_env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            # In the child it calls one C function, looked up before the fork: nothing there can wait for a lock.
            preexec_fn=_death_with_parent(os.getpid()) if dies_with_us else None,  # noqa: PLW1509
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ToolFailed(step=step, argv=argv, returncode=None, last_lines=(reason,)) from error


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _death_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does first: asks to be killed when its parent dies, and leaves if that has happened already."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: the child between fork and exec imports nothing

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)

    return ask


def stop_tool(child: subprocess.Popen[bytes], *, grace_s: float = 5.0) -> int:
    """Ends a program and all it started: SIGTERM, then SIGKILL after grace_s. Returns its exit status."""
    _signal_group(child, signal.SIGTERM)
    try:
        return child.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        _signal_group(child, signal.SIGKILL)
        return child.wait()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _wait(child: subprocess.Popen[bytes], timeout_s: float | None) -> tuple[int | None, int | None]:
    """(exit status, peak resident bytes); status None when it had to be stopped at timeout_s."""
    if timeout_s is not None:
        try:
            return child.wait(timeout=timeout_s), None
        except subprocess.TimeoutExpired:
            stop_tool(child)
            return None, None
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if os.uname().sysname == "Darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return child.returncode, int(usage.ru_maxrss) * scale


def _reader(pipe: IO[bytes] | None, name: str, lines: dict[str, list[str]], on_text: OnText | None) -> threading.Thread:
    def read() -> None:
        for text in _pieces(pipe):
            if on_text:
                on_text(name, text)
            whole = (pending.pop() if pending else "") + text
            parts = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            pending.append(parts.pop())
            kept = lines[name]
            kept.extend(parts)
            if len(kept) > 2 * _MAX_LINES:
                del kept[:-_MAX_LINES]
        if pending and pending[0]:
            lines[name].append(pending[0])

    pending: list[str] = []
    thread = threading.Thread(target=read, name=f"read-{name}", daemon=True)
    thread.start()
    return thread


def _pieces(pipe: IO[bytes] | None) -> Iterator[str]:
    import codecs

    if pipe is None:
        return
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    with pipe:
        while piece := os.read(pipe.fileno(), 65536):
            yield decode(piece)
