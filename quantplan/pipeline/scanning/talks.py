"""The conversations that a template is rendered with: written here, small, and with marks to find again."""

from __future__ import annotations

from typing import Any

USER_MARK = "Quokka-7301"  # in what the user says last: a prompt without it has lost the question
_ASKED = f"What grows on the north side of hill {USER_MARK}?"
_SYSTEM = {"role": "system", "content": "Answer in one sentence."}
_USER = {"role": "user", "content": _ASKED}
_TURNS = [
    {"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "The alder."},
    {"role": "user", "content": "And a fern?"}, {"role": "assistant", "content": "The bracken."}, _USER,
]  # fmt: skip
_TOOLS = [{
    "type": "function", "function": {
        "name": "height_of", "description": "How high a hill is.",
        "parameters": {"type": "object", "properties": {"hill": {"type": "string", "description": "Its name."}},
                       "required": ["hill"]},
    },
}]  # fmt: skip
_CALL = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "id": "c00000001",
                    "function": {"name": "height_of", "arguments": {"hill": "Ben"}}}],
}  # fmt: skip
_RESULT = {"role": "tool", "name": "height_of", "tool_call_id": "c00000001", "content": "812 m"}

TALKS: dict[str, dict[str, Any]] = {
    "user": {"messages": [_USER]},
    "user, no generation prompt": {"messages": [_USER], "add_generation_prompt": False},
    "system": {"messages": [_SYSTEM, _USER]},
    "multi-turn": {"messages": _TURNS},
    "system, multi-turn": {"messages": [_SYSTEM, *_TURNS]},
    "tools": {"messages": [_SYSTEM, _USER], "tools": _TOOLS},
    "tool call": {"messages": [{"role": "user", "content": "How high is Ben?"}, _CALL, _RESULT, _USER],
                  "tools": _TOOLS},
    "thinking": {"messages": [_USER], "enable_thinking": True},
    "no thinking": {"messages": [_USER], "enable_thinking": False},
    "long": {"messages": [_TURNS[i % 4] for i in range(12)] + [_USER]},
}  # fmt: skip
