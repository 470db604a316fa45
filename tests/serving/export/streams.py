"""Streams asked for all at once, and what became of each."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One request: its status, headers, body, and the seconds until its head, its first text and its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    head_s: float
    first_s: float
    all_s: float
    n_reads: int  # pieces that came apart from each other


def stream(port: int, *, n_tokens: int = 700, key: str | None = None, host: str = "localhost") -> Stream:
    """A streamed chat of exactly `n_tokens` tokens."""
    body = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": n_tokens, "stream": True,
            "temperature": 0, "ignore_eos": True, "cache_prompt": False}  # fmt: skip
    headers = {"Content-Type": "application/json", "Host": host}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    head_s = time.monotonic() - started
    pieces, first_s = [], None
    while piece := answer.read1(1 << 16):
        first_s = first_s or time.monotonic() - started
        pieces.append(piece)
    told = {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return Stream(status=answer.status, headers=told, body=b"".join(pieces), head_s=head_s, first_s=first_s or head_s,
                  all_s=time.monotonic() - started, n_reads=len(pieces))  # fmt: skip


def at_once(port: int, keys: Sequence[str | None], **more: object) -> list[Stream]:
    """A stream for each key, all sent in the same moment."""
    found: list[Stream] = []
    gate = threading.Barrier(len(keys))

    def go(key: str | None) -> None:
        gate.wait()
        found.append(stream(port, key=key, **more))  # type: ignore[arg-type]

    threads = [threading.Thread(target=go, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert len(found) == len(keys)
    return found


def admitted(streams: Sequence[Stream]) -> list[Stream]:
    return [one for one in streams if one.status == 200]


def refused(streams: Sequence[Stream]) -> list[Stream]:
    return [one for one in streams if one.status != 200]
