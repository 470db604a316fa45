"""logs/<step>.log in the work folder: the command, all that the tool said, and how it ended."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from quantplan.llama.process import OnText, Runner

FOLDER = "logs"


def log_file(folder: Path, step: str) -> Path:
    """Where a step's log lies."""
    return folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', step)}.log"


class StepLog:
    """One run of a step. A log that cannot be written is no reason to fail: the disk may be full."""

    def __init__(self, folder: Path, step: str, argv: Sequence[str]) -> None:
        self._file: IO[str] | None = None
        path = log_file(folder, step)
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError:
            return
        self._write(f"# {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {' '.join(argv)}\n")

    def watching(self, run: Runner, on_text: OnText | None, *, cwd: Path) -> Runner:
        """`run` in the work folder, with all that is said written down and handed on."""

        def runner(argv: Sequence[str], **options: Any) -> Any:
            own: Callable[[str, str], None] | None = options.pop("on_text", None)

            def tee(stream: str, text: str) -> None:
                self._write(text)
                for listener in (on_text, own):
                    if listener is not None:
                        listener(stream, text)

            return run(argv, **{"cwd": cwd, **options}, on_text=tee)

        return runner

    def end(self, returncode: int, seconds: float, peak_rss_bytes: int | None) -> None:
        self._write(f"\n# status {returncode}, {seconds:.3f} s, peak memory {peak_rss_bytes} bytes\n")

    def _write(self, text: str) -> None:
        try:
            if self._file is not None:
                self._file.write(text)
        except (OSError, ValueError):
            self._file = None

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._write(f"\n# {type(error).__name__}: {error}\n")
        try:
            if self._file is not None:
                self._file.close()
        except OSError:
            pass
