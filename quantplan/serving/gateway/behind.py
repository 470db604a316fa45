"""An engine that is kept running, and the gateway before it, until a signal comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantplan.llama.types import Toolchain
from quantplan.serving.gateway.app import check_extra, host_samples, run_gateway
from quantplan.serving.gateway.engine_port import free_port
from quantplan.serving.gateway.keys import Key
from quantplan.serving.gateway.limits import Wishes
from quantplan.serving.gateway.router import Model, engine_key, engine_launch
from quantplan.serving.gateway.upstream import Engine
from quantplan.serving.kept import kept_running
from quantplan.serving.supervise import OnEvent, Patience, Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """Where clients come in, with which keys, and what the operator wishes otherwise than derived."""

    host: str
    port: int
    keys: Mapping[bytes, Key]
    wishes: Wishes


def serve_behind(
    models: Mapping[str, Model], door: FrontDoor, *, tools: Toolchain, work: Path, on_event: OnEvent,
    patience: Patience, ready: Callable[[Supervisor], None],
) -> None:  # fmt: skip
    """Starts the engine on the loopback with a key of its own, then the gateway; returns after SIGTERM or SIGINT, once
    running answers have ended. An engine that dies is started again meanwhile; the gateway stays and says 503.

    Raises what either raises when it cannot start, and KeepsCrashing.
    """
    check_extra()
    with engine_key() as (key_file, key):
        port = free_port()
        launch = engine_launch(models, port=port, api_key_file=key_file, tools=tools, work=work)
        with kept_running(launch, on_event=on_event, patience=patience) as kept:
            run_gateway(
                {name: model.plan for name, model in models.items()},
                Engine(host="127.0.0.1", port=port, key=key),
                host=door.host,
                port=door.port,
                keys=door.keys,
                wishes=door.wishes,
                samples=host_samples(),
                ready=lambda: ready(kept.supervisor),
                drain_s=round(patience.drain_s),
                stop_when=lambda: bool(kept.failed),
            )
