"""A Modelfile by its documented grammar, and the variables beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving.export.facts import Facts, commented

from quantplan.serving.export.exported import File

REFUSED = ("shards",)
INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "DRAFT",
                "RENDERER", "PARSER")  # fmt: skip
# docs/modelfile.mdx and api/types.go (Options, Runner) of ollama, without what parser.go calls deprecated
PARAMETERS: dict[str, type] = {
    "num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "num_thread": int, "use_mmap": bool,
    "num_keep": int, "num_predict": int, "seed": int, "top_k": int, "repeat_last_n": int, "stop": str,
    "temperature": float, "top_p": float, "min_p": float, "typical_p": float, "repeat_penalty": float,
    "presence_penalty": float, "frequency_penalty": float,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Modelfile:
    sources: tuple[str, ...]
    parameters: dict[str, int | bool | float | str]
    licences: tuple[str, ...]


def parse(text: str) -> Modelfile:
    """Instructions one a line, values of several lines in three quotes. Fails for what Ollama refuses."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest:
        line, _, after = rest.partition("\n")
        if not line.strip() or line.startswith("#"):
            rest = after
            continue
        word, _, value = line.partition(" ")
        assert word.upper() in INSTRUCTIONS, word
        if value.startswith('"""'):
            value, closed, after = rest[len(word) + 4 :].partition('"""')
            assert closed, "three quotes without an end"
            after = after.partition("\n")[2]
        elif value.startswith('"'):
            assert len(value) > 1 and value.endswith('"'), value
            value = value[1:-1]
        assert value.strip()
        found.append((word.upper(), value.strip()))
        rest = after
    parameters: dict[str, int | bool | float | str] = {}
    for name, value in (told.split(" ", 1) for word, told in found if word == "PARAMETER"):
        kind = PARAMETERS[name]
        assert kind is not bool or value in ("true", "false")
        assert name not in parameters
        parameters[name] = value == "true" if kind is bool else kind(value)
    sources = tuple(value for word, value in found if word == "FROM")
    assert found[0][0] == "FROM" and sources
    return Modelfile(sources=sources, parameters=parameters,
                     licences=tuple(value for word, value in found if word == "LICENSE"))  # fmt: skip


def environment(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*=[\w.:,\[\]-]+", line) for line in lines), lines
    return dict(line.split("=", 1) for line in lines)


def read(files: tuple[File, ...]) -> Facts:
    modelfile, variables = files
    parse(modelfile.text)
    environment(variables.text)
    assert commented(modelfile.text) == commented(variables.text)
    return Facts(marks=commented(modelfile.text))
