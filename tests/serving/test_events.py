"""Log lines of the pinned llama-server as events."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from quantplan.serving.events import Event, InFlight, Kind, parse_line

TRANSCRIPT = Path(__file__).resolve().parents[1] / "data" / "llama_output" / "llama-server-0c1e570.txt"


def events() -> list[Event]:
    lines = TRANSCRIPT.read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := parse_line(line))]


def of(kind: Kind) -> list[Event]:
    return [event for event in events() if event.kind is kind]


def test_a_start_and_a_request() -> None:
    buffers = [(e.data["device"], e.data["part"], e.data["bytes"]) for e in of(Kind.BUFFER)]
    assert buffers == [
        ("CPU_Mapped", "model", 2055209), ("CPU_REPACK", "model", 1509949), ("CPU", "output", 10486),
        ("CPU", "KV", 8388608), ("CPU", "compute", 11020534),
    ]  # fmt: skip
    (cache,) = of(Kind.CACHE)
    assert cache.data == {"cells": 4096, "type_k": "f16", "type_v": "f16"}
    (slots,) = of(Kind.SLOTS)
    assert slots.data == {"n_parallel": 2, "n_ctx_per_slot": 2048, "kv_unified": True}
    assert len(of(Kind.LISTENING)) == len(of(Kind.LOADING)) == 1
    (started,), (done,) = of(Kind.REQUEST_STARTED), of(Kind.REQUEST_DONE)
    assert (started.slot, started.task, done.slot, done.task) == (1, 1, 1, 1)
    assert done.data == {"n_tokens": 24, "truncated": False}
    timings = [(e.data["what"], e.data["n_tokens"], e.data["seconds"]) for e in of(Kind.TIMING)]
    assert timings == [("prefill", 9, 0.00225), ("decode", 16, 0.00538), ("total", 25, 0.00764)]


def test_refusals_and_warnings() -> None:
    exceeded = [event.data for event in of(Kind.CONTEXT_EXCEEDED)]
    assert exceeded[0] == {"n_prompt": 2048, "n_ctx": 2048}
    assert len(exceeded) == 3
    assert parse_line("0.01.0 W srv  unauthorized: Invalid API Key") == Event(
        kind=Kind.UNAUTHORIZED, text="0.01.0 W srv  unauthorized: Invalid API Key"
    )
    found = parse_line("0.00.013.120 I using config file: /etc/llama.cpp/config.ini")
    assert found is not None
    assert found.kind is Kind.SETTINGS_FILE
    assert Counter(event.kind for event in events())[Kind.WARNING] >= 3


def test_lines_that_report_nothing() -> None:
    for line in ("", "\trepeat_last_n = 64", "0.00.022.343 I resolve_fused_ops: Flash Attention enabled", "\x1b[0m?"):
        assert parse_line(line) is None
    error = parse_line("0.01.002.003 E srv    load_model: failed to load model")
    assert error is not None
    assert (error.kind, error.text) == (Kind.ERROR, "srv    load_model: failed to load model")


def test_which_slots_are_busy() -> None:
    seen = InFlight()
    for kind, slot in ((Kind.REQUEST_STARTED, 1), (Kind.REQUEST_STARTED, 0), (Kind.REQUEST_DONE, 1),
                       (Kind.TIMING, 1), (Kind.REQUEST_DONE, 3)):  # fmt: skip
        seen.see(Event(kind=kind, slot=slot))
    assert seen.busy == {0}
