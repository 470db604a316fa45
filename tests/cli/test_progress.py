"""The bar of a download: one line for all threads, lines where there is no terminal."""

from __future__ import annotations

import io

from quantplan.cli.progress import DownloadBar
from quantplan.units import MIB


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_rate_and_time_left() -> None:
    now = [0.0]
    out = Terminal()
    bar = DownloadBar("org/m", out=out, clock=lambda: now[0])
    bar.start(100 * MIB)
    for _ in range(5):
        now[0] += 1.0
        bar.add(10 * MIB)
    assert bar.line() == ("org/m [############            ]  50 % 50.0 MiB of 100.0 MiB, 12.5 MiB/s, 0:04 left")
    bar.add(-10 * MIB)
    assert " 40 % 40.0 MiB of 100.0 MiB" in bar.line()
    bar.stop()
    assert out.getvalue().count("\r") > 2
    assert out.getvalue().endswith("\n")


def test_lines_without_a_terminal() -> None:
    now = [0.0]
    out = io.StringIO()
    bar = DownloadBar("org/m", out=out, clock=lambda: now[0])
    bar.start(4 * MIB)
    for _ in range(4):
        now[0] += 10.0
        bar.add(MIB)
    bar.say("something")
    bar.stop()
    lines = out.getvalue().splitlines()
    assert lines[0] == "org/m: 4.0 MiB to fetch"
    assert lines[-2] == "org/m: something"
    assert "100 %" in lines[-1]
    assert len(lines) == 5
    assert "\r" not in out.getvalue()
