"""Conversations as the model itself would see them: the chat text that ships, put through the model's own template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from quantplan.errors import ToolFailed
from quantplan.llama.process import Runner, run_tool
from quantplan.pipeline.scanning.template import why_no_jinja
from quantplan.pipeline.scanning.worker import run_worker

ROLES = ("system", "user", "assistant", "tool")
TURNS = 6  # a conversation of the text goes on for so many turns at most: where the next begins is not marked
_LONGEST_S = 30.0
_WORKER = "quantplan.pipeline.chat_worker"
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


def render(template: str, text: str, *, bos: str, eos: str, run: Runner = run_tool) -> str:
    """The chat text in a model's own template, one conversation after another, written in a process with limits: a
    template is a stranger's program. Raises TemplateFailed: no Jinja here, or a template that does not take plain
    conversations or does not come to an end."""
    lacking = why_no_jinja()
    if lacking is not None:
        raise TemplateFailed(f"its template cannot be put to use: {lacking}")
    job = {"template": template, "talks": conversations(text), "bos_token": bos, "eos_token": eos}
    try:
        done = run_worker(_WORKER, job, step="render the chat text", timeout_s=_LONGEST_S, run=run)
    except ToolFailed as error:
        raise TemplateFailed("its template does not come to an end") from error
    told = _told(done.stdout)
    if "text" not in told:
        why = told.get("error") or "it takes too much time or memory"
        raise TemplateFailed(f"its template does not take plain conversations ({why})")
    return str(told["text"])


def _told(lines: Sequence[str]) -> dict[str, Any]:
    """The worker's only line; empty where its limits ended it first."""
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
