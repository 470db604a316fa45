"""llama-server's log lines as events. Pure; tested against transcripts of the pinned build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

_LINE = re.compile(r"^(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:(?P<level>[IWED]) )?(?P<text>.*)$")
_SLOT = re.compile(r"\bid\s+(?P<slot>\d+) \| task (?P<task>-?\d+) \|")
_TIMING = re.compile(r"(?P<what>prompt eval|eval|total) time =\s+(?P<ms>[\d.]+) ms /\s+(?P<n>\d+) (?:tokens|runs)")
_RELEASE = re.compile(r"stop processing: n_tokens = (?P<n>\d+), truncated = (?P<truncated>\d)")
_BUFFER = re.compile(r"(?P<device>\S+)\s+(?P<what>model|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[\d.]+) MiB")
_CACHE = re.compile(r"size =\s*[\d.]+ MiB \(\s*(?P<cells>\d+) cells.*K \((?P<type_k>\w+)\).*V \((?P<type_v>\w+)\)")
_SLOTS = re.compile(r"n_slots = (?P<n_parallel>\d+), n_ctx_slot = (?P<n_ctx_per_slot>\d+), kv_unified = '(?P<kv>\w+)'")
_TOO_LONG = re.compile(r"request \((?P<n_prompt>\d+) tokens\) exceeds the available context size \((?P<n_ctx>\d+)")


class Kind(Enum):
    """What happened. The first ones come from llama-server's log, the last ones from quantplan."""

    LOADING = "loading"
    BUFFER = "buffer"
    CACHE = "cache"
    SLOTS = "slots"
    LISTENING = "listening"
    REQUEST_STARTED = "request_started"
    REQUEST_DONE = "request_done"
    TIMING = "timing"
    CONTEXT_EXCEEDED = "context_exceeded"
    CONTEXT_EXHAUSTED = "context_exhausted"
    UNAUTHORIZED = "unauthorized"
    SETTINGS_FILE = "settings_file"
    WARNING = "warning"
    ERROR = "error"
    STARTED = "started"
    READY = "ready"
    CRASHED = "crashed"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    MEMORY = "memory"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `data` holds numbers by llama.cpp's words; slot and task are None where it concerns none."""

    kind: Kind
    slot: int | None = None
    task: int | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    text: str = ""


def parse_line(line: str) -> Event | None:
    """The event of a log line; None for a line that reports none. Levels W and E that nothing else explains are
    events of their own."""
    match = _LINE.match(line)
    level, text = (match["level"], match["text"]) if match else (None, line)
    where = _SLOT.search(text)
    slot, task = (int(where["slot"]), int(where["task"])) if where else (None, None)
    found = _known(text)
    if found is None:
        if level not in ("W", "E"):
            return None
        found = (Kind.WARNING if level == "W" else Kind.ERROR, {})
    kind, data = found
    return Event(kind=kind, slot=slot, task=task, data=data, text=text.strip())


def _known(text: str) -> tuple[Kind, dict[str, object]] | None:
    if "processing task" in text:
        return Kind.REQUEST_STARTED, {}
    if match := _RELEASE.search(text):
        return Kind.REQUEST_DONE, {"n_tokens": int(match["n"]), "truncated": match["truncated"] == "1"}
    if match := _TIMING.search(text):
        seconds = round(float(match["ms"]) / 1000, 6)
        return Kind.TIMING, {"what": _PARTS[match["what"]], "seconds": seconds, "n_tokens": int(match["n"])}
    if match := _TOO_LONG.search(text):
        return Kind.CONTEXT_EXCEEDED, {"n_prompt": int(match["n_prompt"]), "n_ctx": int(match["n_ctx"])}
    if match := _BUFFER.search(text):
        size = round(float(match["mib"]) * 1024**2)
        return Kind.BUFFER, {"device": match["device"], "part": match["what"], "bytes": size}
    if match := _CACHE.search(text):
        return Kind.CACHE, {"cells": int(match["cells"]), "type_k": match["type_k"], "type_v": match["type_v"]}
    if match := _SLOTS.search(text):
        numbers: dict[str, object] = {name: int(match[name]) for name in ("n_parallel", "n_ctx_per_slot")}
        return Kind.SLOTS, {**numbers, "kv_unified": match["kv"] == "true"}
    return next(((kind, {}) for words, kind in _PHRASES if words in text), None)


_PARTS = {"prompt eval": "prefill", "eval": "decode", "total": "total"}
# tools/server/*.cpp and common/arg.cpp, build 0c1e570
_PHRASES = (
    ("loading model '", Kind.LOADING),
    ("listening on http", Kind.LISTENING),
    ("unauthorized: Invalid API Key", Kind.UNAUTHORIZED),
    ("using config file:", Kind.SETTINGS_FILE),
    ("Context size has been exceeded", Kind.CONTEXT_EXHAUSTED),
)


@dataclass(slots=True)
class InFlight:
    """Which slots work on a request, by the events seen."""

    busy: set[int] = field(default_factory=set)

    def see(self, event: Event) -> None:
        if event.slot is None:
            return
        if event.kind is Kind.REQUEST_STARTED:
            self.busy.add(event.slot)
        elif event.kind is Kind.REQUEST_DONE:
            self.busy.discard(event.slot)
