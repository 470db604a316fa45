"""vLLM's scripts: it is another engine, so of the plan it has the marks; its command is read for its own tests."""

from __future__ import annotations

import shlex

from serving.export.facts import Facts, commented

from quantplan.serving.export.exported import File


def serve_words(script: str, **arguments: str) -> list[list[str]]:
    """Every `vllm serve` of a script, without these two words; its own arguments put in place."""
    joined = script.replace("\\\n", " ")
    for name, value in arguments.items():
        joined = joined.replace(f'"${name.removeprefix("arg")}"', value)
    lines = [line.strip() for line in joined.splitlines() if line.strip().startswith("exec vllm serve ")]
    return [shlex.split(line)[3:] for line in lines]


def read(files: tuple[File, ...]) -> Facts:
    (script,) = files
    return Facts(marks=commented(script.text))
