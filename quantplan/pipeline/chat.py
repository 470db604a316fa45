"""Conversations as the model itself would see them: the chat text that ships, put through the model's own template."""

from __future__ import annotations

import re
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
TURNS = 6  # a conversation of the text goes on for so many turns at most: where the next begins is not marked
_MARK = re.compile(r"^<(system|user|assistant|tool)>$", re.MULTILINE)


class TemplateFailed(Exception):
    """A template that could not be used, with the reason."""


def conversations(text: str) -> tuple[tuple[dict[str, str], ...], ...]:
    """The turns of the chat text (`<role>` on a line of its own), as conversations of user and assistant; a system
    turn begins a new one. Tool turns are told by the user, since not every template knows the role."""
    found: list[list[dict[str, str]]] = []
    parts = _MARK.split(text)[1:]
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        said = {"role": "user" if role == "tool" else role, "content": content.strip()}
        if not found or role == "system" or (role == "user" and len(found[-1]) >= TURNS):
            found.append([])
        current = found[-1]
        if current and current[-1]["role"] == said["role"]:
            current[-1] = {**current[-1], "content": f"{current[-1]['content']}\n{said['content']}"}
        else:
            current.append(said)
    whole = (_from_user_to_assistant(turns) for turns in found)
    return tuple(turns for turns in whole if turns)


def _from_user_to_assistant(turns: list[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Alternating turns only: many templates refuse anything else."""
    start = 1 if turns and turns[0]["role"] == "system" else 0
    while start < len(turns) and turns[start]["role"] != "user":
        del turns[start]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return tuple(turns)


def render(template: str, text: str, *, bos: str, eos: str) -> str:
    """The chat text in a model's own template, one conversation after another. Raises TemplateFailed: no Jinja here,
    or a template that does not take plain conversations."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise TemplateFailed("its template cannot be put to use: Python lacks jinja2") from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[
        "jinja2.ext.loopcontrols"])  # fmt: skip
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: "2026-01-01")
    shown = []
    try:
        compiled = environment.from_string(template)
        for turns in conversations(text):
            shown.append(_one(compiled, turns, bos=bos, eos=eos))
    except (TemplateError, TemplateFailed, TypeError, ValueError, KeyError) as error:
        raise TemplateFailed(f"its template does not take plain conversations ({error})") from error
    return "\n".join(shown)


def _one(compiled: Any, turns: tuple[dict[str, str], ...], *, bos: str, eos: str) -> str:
    """One conversation; without its system turn where the template refuses that."""
    values = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": False, "tools": None}
    try:
        return str(compiled.render(messages=list(turns), **values))
    except TemplateFailed:
        if turns[0]["role"] != "system":
            raise
        return str(compiled.render(messages=list(turns[1:]), **values))


def _refuse(message: str) -> None:
    raise TemplateFailed(message)
