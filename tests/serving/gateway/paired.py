"""The gateway against direct access to the same engine, in turns: what it adds to the first token, takes of the rate.

A client as small as can be: one thread and one socket a stream, bytes counted, nothing parsed.
"""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn: events a second over all streams, and each stream's seconds to its first event."""

    tokens_per_s: float
    n_tokens: int
    ttft_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Medians over pairs of turns. Processor time is the gateway's and the engine's, while the gateway was used."""

    n_pairs: int
    direct_tokens_per_s: float
    rate_ratio: float
    ttft_added_s: float
    gateway_cpu_s_per_token: float
    engine_cpu_s_per_token: float
    engine_cpu_s_per_token_direct: float
    ratios: tuple[float, ...]


def one_round(port: int, *, n_streams: int, n_each: int, n_tokens: int, seed: int) -> Round:
    """n_streams streams at once, each n_each answers one after another, of half to one and a half times n_tokens
    tokens: the same ones for the same seed.

    Each stream's first answer is left out of the times to the first token: they all begin in the same instant, and no
    clients do that; the others begin while seven streams run.
    """
    firsts: list[float] = []
    counts: list[int] = []

    def go(index: int) -> None:
        chance = random.Random(seed * 1000 + index)
        for number in range(n_each):
            length = chance.randint(n_tokens // 2, n_tokens + n_tokens // 2) if n_each > 1 else n_tokens
            first, count = one_answer(port, f"hello {chance.random()}", length)
            counts.append(count)
            if number or n_each == 1:
                firsts.append(first)

    threads = [threading.Thread(target=go, args=(index,)) for index in range(n_streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == n_streams * n_each
    return Round(tokens_per_s=sum(counts) / (time.perf_counter() - began), n_tokens=sum(counts), ttft_s=tuple(firsts))


def one_answer(port: int, text: str, n_tokens: int) -> tuple[float, int]:
    """(seconds to the first event, events)."""
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": n_tokens, "stream": True,
                       "ignore_eos": True, "temperature": 0, "cache_prompt": False}).encode()  # fmt: skip
    with socket.create_connection(("127.0.0.1", port)) as stream:
        began = time.perf_counter()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first, count = 0.0, 0
        while piece := stream.recv(1 << 16):
            count += piece.count(b"data: ")
            if not first and count:
                first = time.perf_counter() - began
    assert count >= n_tokens, f"{count} events of {n_tokens}"
    return first, count


def cpu_s(pid: int) -> float:
    """Processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(
    direct: int, gateway: int, *, engine_pid: int, gateway_pid: int, n_pairs: int, n_streams: int, n_each: int,
    n_tokens: int,
) -> Compared:  # fmt: skip
    """Pairs of turns, the order of each by chance."""
    chance = random.Random(1)
    for port in (direct, gateway):
        one_round(port, n_streams=n_streams, n_each=1, n_tokens=8, seed=0)
    rounds: dict[int, list[Round]] = {direct: [], gateway: []}
    spent = {direct: 0.0, gateway: 0.0, -1: 0.0}
    for pair in range(n_pairs):
        for port in chance.sample((direct, gateway), 2):
            engine, front = cpu_s(engine_pid), cpu_s(gateway_pid)
            rounds[port].append(one_round(port, n_streams=n_streams, n_each=n_each, n_tokens=n_tokens, seed=pair))
            spent[port] += cpu_s(engine_pid) - engine
            if port == gateway:
                spent[-1] += cpu_s(gateway_pid) - front
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(rounds[gateway], rounds[direct], strict=True)]
    added = [statistics.median(a.ttft_s) - statistics.median(b.ttft_s)
             for a, b in zip(rounds[gateway], rounds[direct], strict=True)]  # fmt: skip
    tokens = sum(one.n_tokens for one in rounds[gateway])
    return Compared(
        n_pairs=n_pairs,
        direct_tokens_per_s=statistics.median(one.tokens_per_s for one in rounds[direct]),
        rate_ratio=statistics.median(ratios),
        ttft_added_s=statistics.median(added),
        gateway_cpu_s_per_token=spent[-1] / tokens,
        engine_cpu_s_per_token=spent[gateway] / tokens,
        engine_cpu_s_per_token_direct=spent[direct] / tokens,
        ratios=tuple(round(ratio, 3) for ratio in ratios),
    )
