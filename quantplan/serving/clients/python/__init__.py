"""A client for one planned model server: its limits are in `limits`, `Client` and `AsyncClient` keep to them."""

from .aio import AsyncClient, AsyncStream
from .answers import Answer, Piece, ToolCall, Usage
from .asking import Message, Options
from .blocking import Client, Stream
from .errors import (
    AnswerTooLong,
    BadAnswer,
    Busy,
    ClientError,
    Closed,
    ContextExceeded,
    HttpError,
    Interrupted,
    NotServed,
    RequestRefused,
    ServerFailed,
    StreamFailed,
    TimedOut,
    Unreachable,
)
from .limits import LIMITS, Limits, Retries, Timeouts

__all__ = [
    "LIMITS",
    "Answer",
    "AnswerTooLong",
    "AsyncClient",
    "AsyncStream",
    "BadAnswer",
    "Busy",
    "Client",
    "ClientError",
    "Closed",
    "ContextExceeded",
    "HttpError",
    "Interrupted",
    "Limits",
    "Message",
    "NotServed",
    "Options",
    "Piece",
    "RequestRefused",
    "Retries",
    "ServerFailed",
    "Stream",
    "StreamFailed",
    "TimedOut",
    "Timeouts",
    "ToolCall",
    "Unreachable",
    "Usage",
]
