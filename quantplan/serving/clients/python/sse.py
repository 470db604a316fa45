"""Server-sent events from bytes in pieces of any size, by the HTML standard; stricter where a stream would be wrong."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from .errors import BadAnswer

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_EVENT_BYTES = 4 * 1024 * 1024
_LINE_END = re.compile("[\r\n]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event; `name` is "message" where the stream gives none."""

    name: str
    data: str


class SseParser:
    """Lines end with CR, LF or CRLF; comments are skipped; lines of data are joined; a rest without a blank line after
    it is no event. Raises BadAnswer for bytes that are not UTF-8 and for lines and events without end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
        self._line: list[str] = []
        self._line_bytes = 0
        self._data: list[str] = []
        self._data_bytes = 0
        self._name = ""
        self._after_cr = False
        self._first = True

    @property
    def idle(self) -> bool:
        """Whether no line or event has begun but a comment's: what came so far says nothing."""
        return not self._data and not self._name and (not self._line or self._line[0].startswith(":"))

    def feed(self, piece: bytes) -> list[Event]:
        """The events that end within a piece."""
        try:
            text = self._decoder.decode(piece)
        except UnicodeDecodeError as error:
            raise BadAnswer(why=f"the stream is not UTF-8 ({error.reason})") from None
        if self._first and text:
            self._first = False
            text = text.removeprefix("\ufeff")
        events: list[Event] = []
        start = 0
        if self._after_cr and text:
            self._after_cr = False
            start = 1 if text[0] == "\n" else 0
        while True:
            found = _LINE_END.search(text, start)
            if found is None:
                break
            end = found.start()
            self._add(text[start:end])
            self._end_line(events)
            start = end + 1
            if text[end] == "\r":
                if start == len(text):
                    self._after_cr = True
                elif text[start] == "\n":
                    start += 1
        self._add(text[start:])
        return events

    def _add(self, text: str) -> None:
        if not text:
            return
        self._line_bytes += len(text.encode())
        if self._line_bytes > MAX_LINE_BYTES:
            raise BadAnswer(why=f"a line of the stream is longer than {MAX_LINE_BYTES} bytes")
        self._line.append(text)

    def _end_line(self, events: list[Event]) -> None:
        line, self._line = "".join(self._line), []
        self._line_bytes = 0
        if not line:
            if self._data:
                events.append(Event(name=self._name or "message", data="\n".join(self._data)))
            self._data, self._data_bytes, self._name = [], 0, ""
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data_bytes += len(value.encode()) + 1
            if self._data_bytes > MAX_EVENT_BYTES:
                raise BadAnswer(why=f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes")
            self._data.append(value)
        elif name == "event":
            self._name = value
