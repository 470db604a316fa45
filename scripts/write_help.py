"""Writes the commands' help into README.md between its markers; tests/cli/test_help.py checks that it is current."""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- commands:begin", "<!-- commands:end -->"


def help_text() -> str:
    """All commands with their one-line help, as a fenced block."""
    from click.testing import CliRunner

    from quantplan.cli.main import cli

    shown = CliRunner().invoke(cli, ["--help"], prog_name="quantplan", terminal_width=100).output
    return f"```text\n{shown.rstrip()}\n```"


def rendered(readme: str) -> str:
    """The README with current help."""
    head, rest = readme.split(BEGIN, 1)
    marker, rest = rest.split("-->", 1)
    _, tail = rest.split(END, 1)
    return f"{head}{BEGIN}{marker}-->\n{help_text()}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
