"""The gateway as a server: routes, and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantplan.artifact.plan_file import Plan
from quantplan.errors import ToolMissing
from quantplan.serving.gateway.asked import EMBEDDING, GENERATING, LOOKING
from quantplan.serving.gateway.house import House
from quantplan.serving.gateway.keys import Key
from quantplan.serving.gateway.limits import Wishes
from quantplan.serving.gateway.refusals import Refusal, wrong_key
from quantplan.serving.gateway.relay import Relay
from quantplan.serving.gateway.upstream import Engine, EngineAway, EngineEnded, EngineSilent
from quantplan.serving.launch import check_port

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from quantplan.hardware.monitor import Sample

EXTRA = "the gateway extra"
_MODULES = ("starlette", "uvicorn", "httptools")
_PASSED_TIMEOUT_S = 30.0
DRAIN_S = 600
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Say = Callable[[str], None]


def check_extra() -> None:
    """Raises ToolMissing when what the gateway is made of is not installed."""
    from importlib import import_module

    lacking = []
    for name in _MODULES:
        try:
            import_module(name)
        except ImportError:
            lacking.append(name)
    if lacking:
        raise ToolMissing(tool=EXTRA, why=f"is not installed ({', '.join(lacking)})")


def run_gateway(
    plans: Mapping[str, Plan],
    engine: Engine,
    *,
    host: str,
    port: int,
    keys: Mapping[bytes, Key] | None = None,
    wishes: Wishes | None = None,
    samples: Iterator[Sample] | None = None,
    ready: Callable[[], None] | None = None,
    drain_s: int = DRAIN_S,
    stop_when: Callable[[], bool] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests end (`drain_s` seconds at most) and returns.

    `plans` by the name clients ask for; `engine` is the llama-server, or its router when there are several.
    `samples` (hardware.monitor.watch) lower and restore concurrency. `ready` is called when it listens.
    It also ends when `stop_when` says so. Raises PortInUse, ToolMissing (the extra).
    """
    check_extra()
    check_port(host, port)
    import uvicorn

    house = House(plans, engine, keys=keys or {}, wishes=wishes)
    config = uvicorn.Config(
        make_app(house, samples=samples, ready=ready), host=host, port=port, http="httptools", loop="auto", ws="none",
        lifespan="on", log_config=None, access_log=False, server_header=False, date_header=False, proxy_headers=False,
        timeout_graceful_shutdown=drain_s, timeout_keep_alive=30,
    )  # fmt: skip
    _draining_server(config, house, stop_when).run()


def _draining_server(config: uvicorn.Config, house: House, stop_when: Callable[[], bool] | None) -> uvicorn.Server:
    """A server that says it is not ready, and refuses, from the moment it is told to stop."""
    import uvicorn

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            house.draining = True
            super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:  # every tenth of a second
            if stop_when is not None and stop_when():
                house.draining = True
                return True
            return await super().on_tick(counter)

    return Draining(config)


def make_app(
    house: House, *, samples: Iterator[Sample] | None = None, ready: Callable[[], None] | None = None
) -> Starlette:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    relay = Relay(house)
    routes = [Route(path, relay, methods=["POST"]) for path in sorted({*GENERATING, *EMBEDDING, *LOOKING})]
    front = _Front(house)
    routes += [
        Route("/healthz", front.healthz),
        Route("/readyz", front.readyz),
        Route("/health", front.readyz),
        Route("/metrics", front.metrics),
        Route("/status", front.status),
        Route("/v1/models", front.models),
        Route("/models", front.models),
        Route("/props", front.props),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        stop = threading.Event()
        if samples is not None:
            _watch(samples, house, stop)
        if not house.several:
            await next(iter(house.served.values())).check.learn()
        if ready is not None:
            asyncio.get_running_loop().call_soon(ready)
        yield
        stop.set()

    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={404: _no_such, 405: _no_such, Refusal: _told}
    )


def _watch(samples: Iterator[Sample], house: House, stop: threading.Event) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        for sample in samples:
            if stop.is_set():
                return
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(house.take_sample, sample)

    threading.Thread(target=read, name="watch-host", daemon=True).start()


async def _no_such(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = "no such path" if status == 404 else f"{request.method} is not possible here"
    return _respond(Refusal(status, "not_found" if status == 404 else "method_not_allowed",
                            f"{request.url.path}: {what}"))  # fmt: skip


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _respond(error)


async def _broken(_request: Request, _error: Exception) -> Response:
    return _respond(Refusal(500, "internal_error", "the gateway failed at this request; its log says how"))


def _respond(refusal: Refusal) -> Response:
    from starlette.responses import Response

    headers = {name.decode(): value.decode() for name, value in refusal.headers()}
    return Response(refusal.body(), status_code=refusal.status, headers=headers)


class _Front:
    """The paths that the gateway answers itself, or passes on without a place."""

    def __init__(self, house: House) -> None:
        self.house = house

    def _needs_key(self, request: Request) -> None:
        from quantplan.serving.gateway.keys import find_key

        if find_key(self.house.keys, dict(request.scope["headers"])) is None:
            raise wrong_key()

    async def healthz(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        why = await self.house.ready()
        return _json({"status": "ok"}) if why is None else _json({"status": why}, status=503)

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        self._needs_key(request)
        text = self.house.metrics.render(self.house.gauges())
        return Response(text, headers={"content-type": _PROMETHEUS})

    async def status(self, request: Request) -> Response:
        self._needs_key(request)
        house = self.house
        told = {
            name: {
                "running": served.door.running, "waiting": served.door.waiting, "limit": served.concurrency.limit,
                "limit_reason": served.concurrency.reason, "slots": served.door.limits.slots,
                "queue": served.door.limits.queue, "n_ctx_per_slot": served.door.limits.n_ctx,
                "max_tokens": served.door.limits.max_tokens, "requests_per_s": served.door.limits.requests_per_s,
                "loaded": name in house.board.loaded, "suggested": house.suggestion(served),
            }
            for name, served in house.served.items()
        }  # fmt: skip
        return _json({"models": told, "draining": house.draining})

    async def models(self, request: Request) -> Response:
        self._needs_key(request)
        house = self.house
        if not house.several:
            return await self._passed("/v1/models")
        data = [
            {"id": name, "object": "model", "owned_by": "quantplan", "created": 0,
             "meta": {"n_ctx": served.door.limits.n_ctx}}
            for name, served in house.served.items()
        ]  # fmt: skip
        return _json({"object": "list", "data": data})

    async def props(self, request: Request) -> Response:
        self._needs_key(request)
        query = request.url.query
        return await self._passed(f"/props?{query}" if query else "/props")

    async def _passed(self, path: str) -> Response:
        from starlette.responses import Response

        try:
            status, body = await self.house.engine.ask("GET", path, timeout_s=_PASSED_TIMEOUT_S)
        except (EngineAway, EngineEnded, EngineSilent) as error:
            raise Refusal(503, "engine_unavailable", f"the engine does not answer: {error}", retry_after_s=1) from None
        return Response(body, status_code=status, headers={"content-type": "application/json"})


def _json(told: Any, *, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(told), status_code=status, headers={"content-type": "application/json"})


def host_samples(*, interval_s: float = 2.0) -> Iterator[Sample]:
    """This host from now on, with its NVIDIA cards where there are any."""
    from quantplan.hardware.detect import nvidia_traces
    from quantplan.hardware.monitor import watch
    from quantplan.hardware.nvml import Pynvml
    from quantplan.hardware.tree import HostTree

    nvml = Pynvml() if nvidia_traces(HostTree()) else None
    return watch(nvml=nvml, env=os.environ, interval_s=interval_s)
