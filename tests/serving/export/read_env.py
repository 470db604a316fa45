"""An .env file, as a shell reads it."""

from __future__ import annotations

import shlex

from serving.export.facts import Facts, commented, only, settings_of

from quantplan.llama import server_flags as flags
from quantplan.serving.export.exported import File


def environment(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


def words(text: str) -> list[str]:
    """What has to stay on the command line."""
    start = next(line for line in text.splitlines() if line.startswith("# Start: llama-server"))
    return shlex.split(start.removeprefix("# Start: llama-server"))


def read(files: tuple[File, ...]) -> Facts:
    text = only(files)
    told = {name: one.value for name, one in flags.from_environment(environment(text)).items()}
    return Facts(marks=commented(text), settings=told | settings_of(words(text)))
