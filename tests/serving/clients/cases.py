"""What a network does to a generation, and what a client must make of it: the same for every language."""

from __future__ import annotations

from typing import Any

import pytest
from serving.clients.fault_proxy import STREAM_HEAD, Fault, chunk, status, stream, token

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
FULL_EXTRA = {"ignore_eos": True}
# so long that the engine notices, on a busy machine too, that its reader has left
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 1000,
                        "extra": {**FULL_EXTRA, "logprobs": True, "top_logprobs": 300}}  # fmt: skip
SLOW: dict[str, Any] = {"temperature": 0, "max_tokens": 600,
                        "extra": {**FULL_EXTRA, "logprobs": True, "top_logprobs": 20}}  # fmt: skip
FULL: dict[str, Any] = {**ASKED, "extra": FULL_EXTRA}
SAID = "Hello. How can I help you this "
UNUSUAL = "héé 日本 🙂!"
QUICK = {"connect_s": 0.5, "count_s": 2.0, "first_token_s": 0.5, "between_tokens_s": 0.5, "total_s": 4.0}


def reached(faults: list[Fault]) -> int:
    """Those of the generations that the engine saw and nobody read."""
    return sum(fault.raw is None and fault.forward for fault in faults)


# Node takes a reset for a proper end where an answer says that the connection closes after it
KEPT = STREAM_HEAD.replace(b"Connection: close\r\n", b"")
# sent again, and answered
AGAIN = [
    pytest.param([Fault(raw=status(429))], id="429"),
    pytest.param([Fault(raw=status(429, headers=b"Retry-After: 1\r\n"))], id="429 after 1 s"),
    pytest.param([Fault(raw=status(503))] * 3, id="503 three times"),
    pytest.param([Fault(forward=False, then="reset")], id="reset, not forwarded"),
    pytest.param([Fault(n_bytes=0, then="reset", long=True)], id="reset, forwarded"),
    pytest.param([Fault(n_bytes=0, then="end", long=True)], id="closed, forwarded"),
    pytest.param([Fault(until=b"\r\n\r\n", then="reset", long=True)], id="reset after the head"),
    pytest.param([Fault(raw=KEPT, then="reset")], id="kept, reset after the head"),
    pytest.param([Fault(raw=STREAM_HEAD + chunk(b": ping\n\n"), then="reset")], id="reset after a comment"),
    pytest.param(
        [Fault(raw=status(503), then="pass"), Fault(n_bytes=0, then="reset", long=True)], id="503, then reset"
    ),
]

# never sent again: (fault, error)
NEVER = [
    pytest.param(Fault(until=b"data: ", then="reset"), "Interrupted", id="reset within the first event"),
    pytest.param(Fault(until=b"\n\n", then="reset"), "Interrupted", id="reset after the first event"),
    pytest.param(Fault(until=b"content\":\"H\"", then="reset"), "Interrupted", id="reset after the first token"),
    pytest.param(Fault(until=b"content\":\"H\"", then="end"), "Interrupted", id="closed after the first token"),
    pytest.param(Fault(until=b"content\":\"H\"", then="hold"), "TimedOut", id="silent after the first token"),
    pytest.param(Fault(then="hold", n_bytes=0), "TimedOut", id="silent from the start"),
    pytest.param(Fault(then="hold", until=b"\r\n\r\n"), "TimedOut", id="silent after the head"),
    pytest.param(Fault(piece_bytes=1, pause_s=0.2), "TimedOut", id="a byte every 0.2 s"),
    pytest.param(Fault(raw=status(200)), "BadAnswer", id="wrong content type"),
    pytest.param(Fault(raw=b"HELO you\r\n\r\n"), "BadAnswer", id="no HTTP"),
    pytest.param(Fault(raw=status(500)), "ServerFailed", id="500"),
    pytest.param(Fault(raw=status(502)), "ServerFailed", id="502"),
    pytest.param(Fault(raw=status(504)), "ServerFailed", id="504"),
    pytest.param(Fault(raw=status(400)), "RequestRefused", id="400"),
    pytest.param(Fault(raw=status(401)), "RequestRefused", id="401"),
    pytest.param(Fault(raw=status(302, headers=b"Location: /\r\n")), "RequestRefused", id="redirect"),
    pytest.param(Fault(raw=status(429, headers=b"Retry-After: 3600\r\n")), "Busy", id="429 for an hour"),
    pytest.param(Fault(raw=KEPT + chunk(token("a")), then="reset"), "Interrupted", id="kept, reset after a token"),
    pytest.param(Fault(raw=KEPT + chunk(b"data: {"), then="reset"), "Interrupted", id="kept, reset in an event"),
    pytest.param(Fault(raw=stream(token("a"))), "Interrupted", id="no [DONE]"),
    pytest.param(Fault(raw=stream()), "Interrupted", id="nothing at all"),
    pytest.param(Fault(raw=stream(b"data: {\n\n")), "BadAnswer", id="no JSON"),
    pytest.param(Fault(raw=stream(b"data: 7\n\n")), "BadAnswer", id="no object"),
    pytest.param(Fault(raw=stream(b"data: \xff\xfe\n\n")), "BadAnswer", id="no UTF-8"),
    pytest.param(Fault(raw=stream(token("a"), b"data: " + b"x" * (5 << 20))), "BadAnswer", id="huge line"),
    pytest.param(Fault(raw=stream(token("a"), token("é")[:-12], ended=False), then="end"), "Interrupted", id="cut"),
    pytest.param(Fault(raw=stream(b'data: {"error":{"message":"no","type":"server_error"}}\n\n')), "StreamFailed",
                 id="error event first"),
    pytest.param(Fault(raw=stream(token("a"), b'event: error\ndata: {"message":"no"}\n\n')), "StreamFailed",
                 id="error event"),
]  # fmt: skip
