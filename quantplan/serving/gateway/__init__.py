"""The front door: an ASGI application that keeps clients' requests within what was planned.

Pure: `limits`, `throttle`, `swap`, `asked`. Doing: `upstream` (one request to the engine), `relay` (one request of a
client), `app` (all of it, as a server).
"""
