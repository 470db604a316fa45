"""A template as plain text: what is hidden in it, what it points to, what it tells the model. Needs no Jinja."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator

from quantplan.artifact.results import Severity

# (rule, severity, line, message)
Found = tuple[str, Severity, int, str]

MAX_TEMPLATE = 256 * 1024  # characters; the longest of the pinned tree's has 16,714
_URL = re.compile(r"\b(?:https?|ftp|wss?)://[^\s'\"<>)}\\]{3,}|\bdata:[a-z]+/[a-z.+-]+;base64,", re.IGNORECASE)
_SCHEMA_URL = re.compile(r"https?://json-schema\.org/", re.IGNORECASE)  # names a dialect, fetches nothing
_BLANKS = re.compile(r"[ \t]{160,}|\n{40,}")
_ENCODED = re.compile(r"[A-Za-z0-9+/]{120,}={0,2}|(?:\\x[0-9a-fA-F]{2}){8,}|(?:\\u[0-9a-fA-F]{4}){8,}")
_MIXED = re.compile(r"[A-Za-z][\u0370-\u03ff\u0400-\u04ff]|[\u0370-\u03ff\u0400-\u04ff][A-Za-z]")
_ORDERS = re.compile(
    r"(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+|the\s+|your\s+)*"
    r"(?:previous|prior|above|earlier|preceding|user(?:'s|s)?)\s+\w*"
    r"|without\s+(?:telling|informing|the\s+user)|(?:secretly|covertly)\s+\w+"
    r"|\b(?:exfiltrate|backdoor)\w*|(?:send|post|forward|upload|leak)\w*\s+(?:\w+\s+){0,5}"
    r"(?:password|credential|api\s*key|secret|conversation|token)s?\s+to"
    r"|\b(?:curl|wget)\s+(?:-\w+\s+)*\S+\s*\|\s*(?:ba)?sh\b",
    re.IGNORECASE,
)
# what vendors write too, of tool calls: worth a look, no alarm
_SILENCE = re.compile(
    r"(?:do\s+not|don't|never)\s+(?:ever\s+)?(?:tell|inform|mention|reveal|disclose|admit)\w*\s+"
    r"(?:\w+\s+){0,3}(?:users?|human|anyone)",
    re.IGNORECASE,
)
_OPENS = re.compile(r"\{\{|\{%")
_REACHES = re.compile(
    r"__(?:class|mro|bases?|subclasses|globals|builtins|init|import|dict|code|closure|reduce|self|getattribute)__"
    r"|\.(?:popen|subprocess|builtins|mro|f_globals|gi_frame)\b|\b(?:os|sys|subprocess)\s*\.|\|\s*attr\b"
    r"|^\{%-?\+?\s*(?:import|from|include|extends)\b"
)


def text_findings(text: str) -> Iterator[Found]:
    """What the text alone shows, by line."""
    lines = _Lines(text)
    yield from _hidden(text, lines)
    for match in _URL.finditer(text):
        if not _SCHEMA_URL.match(match[0]):
            yield "template-url", Severity.WARNING, lines.at(match.start()), f"holds the address {match[0][:80]}"
    for match in _ORDERS.finditer(text):
        said = " ".join(match[0].split())[:80]
        yield "template-instruction", Severity.ERROR, lines.at(match.start()), f"gives the model an order: {said!r}"
    for match in _SILENCE.finditer(text):
        said = " ".join(match[0].split())[:80]
        yield "template-silence", Severity.NOTE, lines.at(match.start()), f"asks the model for silence: {said!r}"
    for match in _BLANKS.finditer(text):
        n = len(match[0])
        if text[match.end() : match.end() + 1] in ("", "\n"):
            continue  # nothing follows
        yield "template-blanks", Severity.WARNING, lines.at(match.end()), f"goes on behind {n:,} blanks, out of sight"
    for match in _ENCODED.finditer(text):
        yield "template-encoded", Severity.WARNING, lines.at(match.start()), f"holds encoded text: {match[0][:24]}…"
    for match in _MIXED.finditer(text):
        names = f"{match[0]!r} mixes letters of two alphabets that look alike"
        yield "template-homoglyph", Severity.WARNING, lines.at(match.start()), names
        break


def syntax_findings(text: str) -> Iterator[Found]:
    """Without Jinja: constructs that can be told by their words inside {{ }} and {% %}."""
    lines = _Lines(text)
    at = 0
    while opened := _OPENS.search(text, at):
        close = "}}" if opened[0] == "{{" else "%}"
        end = text.find(close, opened.end())
        if end < 0:
            return
        for match in _REACHES.finditer(text[opened.start() : end]):
            said = match[0].strip("{%-+ ")
            yield "template-escape", Severity.ERROR, lines.at(opened.start() + match.start()), f"uses {said}"
        at = end + 2


def _hidden(text: str, lines: _Lines) -> Iterator[Found]:
    kinds: dict[str, list[int]] = {}
    for match in _INVISIBLE.finditer(text):
        kind = kind_of(match[0])
        if kind == "zero-width" and _joins(text, match.start()):
            continue
        kinds.setdefault(kind, []).append(match.start())
    for kind, places in kinds.items():
        char = f"U+{ord(text[places[0]]):04X}"
        said = f"has {len(places)} {kind} character(s), the first {char}: what is shown is not what is read"
        if kind == "tag":
            plain = "".join(chr(ord(text[i]) - 0xE0000) for i in places if 0xE0020 <= ord(text[i]) < 0xE007F)
            said += f"; they spell {plain[:80]!r}"
        severity = Severity.WARNING if kind == "zero-width" else Severity.ERROR
        yield "template-unicode", severity, lines.at(places[0]), said


_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e01ef\U0001bca0-\U0001bca3\u3164\uffa0\u115f\u1160]"
)


def first_invisible(text: str) -> tuple[str, int] | None:
    """(kind, index) of the first character that cannot be seen or turns the text around."""
    for match in _INVISIBLE.finditer(text):
        kind = kind_of(match[0])
        if kind != "zero-width" or not _joins(text, match.start()):
            return kind, match.start()
    return None


def kind_of(char: str) -> str:
    """bidi, tag or zero-width."""
    if "\U000e0000" <= char <= "\U000e01ef":
        return "tag"
    return (
        "bidi" if char in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" else "zero-width"
    )


def _joins(text: str, i: int) -> bool:
    """Whether a joiner does its work: between emoji, or letters of a script that needs it."""
    if text[i] not in "\u200c\u200d" or not 0 < i < len(text) - 1:
        return False
    return all(ord(c) > 0x2FF and unicodedata.category(c)[0] in "LMS" for c in (text[i - 1], text[i + 1]))


class _Lines:
    """Line numbers of positions in a text."""

    def __init__(self, text: str) -> None:
        self._ends = [match.start() for match in re.finditer("\n", text)]

    def at(self, position: int) -> int:
        return bisect_right(self._ends, position - 1) + 1
