"""HTTP to a server that is being checked: every answer is data, also a refusal; only silence is an error."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from quantplan.errors import ServerUnreachable

_MOST_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status and what came with it; `body` is None where it is no JSON."""

    status: int
    body: Any
    text: str
    server: str | None = None

    def at(self, *path: str | int) -> Any:
        """A value inside the body; None where the way ends."""
        found = self.body
        for step in path:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A server's address, with the key that opens it."""

    url: str
    key: str | None = None
    timeout_s: float = 120.0

    def get(self, path: str, *, key: str | None = None) -> Answer:
        return self._ask(path, None, key)

    def post(self, path: str, body: object, *, key: str | None = None) -> Answer:
        return self._ask(path, json.dumps(body).encode(), key)

    def stream(self, path: str, body: object) -> tuple[Answer, tuple[Any, ...]]:
        """Server-sent events: the answer, and the JSON of its `data:` lines, in order; [DONE] is the string."""
        answer = self._ask(path, json.dumps(body).encode(), None)
        pieces = []
        for line in answer.text.splitlines():
            if line.startswith("data:"):
                word = line[5:].strip()
                try:
                    pieces.append(json.loads(word))
                except ValueError:
                    pieces.append(word.strip("[]"))
        return answer, tuple(pieces)

    def _ask(self, path: str, body: bytes | None, key: str | None) -> Answer:
        """One request. Raises ServerUnreachable when nobody answers in HTTP."""
        told = key or self.key
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {told}"} if told else {})
        request = urllib.request.Request(self.url.rstrip("/") + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return _answer(response.status, response.read(_MOST_BYTES), response.headers.get("Server"))
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read(_MOST_BYTES), error.headers.get("Server"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerUnreachable(url=self.url, why=f"no answer ({reason})") from None


def _answer(status: int, raw: bytes, server: str | None) -> Answer:
    text = raw.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    return Answer(status=status, body=body, text=text, server=server)
