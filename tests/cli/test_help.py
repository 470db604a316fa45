"""Help: fast, complete, with an example everywhere, and the README's copy is current."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from quantplan.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]


def every_command() -> list[tuple[str, click.Command]]:
    found = []
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", child) for sub, child in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), every_command())
def test_every_command_has_help_and_an_example(name: str, command: click.Command) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="quantplan")
    assert shown.exit_code == 0
    assert command.help
    assert re.search(rf"Example: quantplan {name}", " ".join(shown.output.split())), name


def test_the_readme_shows_the_help_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("write_help", ROOT / "scripts" / "write_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.rendered(readme) == readme, "run: python scripts/write_help.py"


def test_help_is_fast() -> None:
    """Cold process under 0.15 s of processor time: what the machine does beside it does not count."""
    spent = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "quantplan", "--help"], check=True, capture_output=True, cwd=ROOT)
        after = os.times()
        spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(spent) < 0.15, spent


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom quantplan.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'numpy', 'pandas', 'gguf', 'huggingface_hub', 'psutil', 'pynvml'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
