"""`quantplan serve --gateway`: its options, and running the front door."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quantplan.cli.options import say

if TYPE_CHECKING:
    from quantplan.serving.gateway.keys import Key
    from quantplan.serving.gateway.router import Model
    from quantplan.serving.runtimes import Serving
    from quantplan.serving.source import Served
    from quantplan.serving.supervise import Supervisor

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)

_OPTIONS = (
    click.option("--gateway", is_flag=True, help="Put the front door before it: limits, counts, metrics."),
    click.option("--also", multiple=True, type=_PATH, help="Another artifact behind the same gateway; repeatable."),
    click.option("--queue", type=click.IntRange(0), help="Gateway: requests that may wait (default: one a slot)."),
    click.option("--max-tokens", type=click.IntRange(1), help="Gateway: longest answer (default: the context)."),
    click.option("--rate", type=click.FloatRange(0.001), help="Gateway: requests a second (default: from the plan)."),
)


def gateway_options(function: F) -> F:
    """The options of the front door."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def serve_with_gateway(served: Served, serving: Serving, options: Any) -> None:
    """Serves one or several artifacts behind the gateway until a signal comes."""
    import tempfile

    from quantplan.cli.event_stream import EventStream, write_json, write_text
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.serving.gateway.behind import FrontDoor, serve_behind
    from quantplan.serving.gateway.limits import Wishes
    from quantplan.serving.supervise import Patience

    if not options.gateway:
        raise click.UsageError("--also needs --gateway: one llama-server has one model")
    for number in (signal.SIGTERM, signal.SIGINT):  # while the engine loads; then the gateway takes them
        signal.signal(number, _interrupt)
    models = _models(served, options)
    wishes = Wishes(queue=options.queue, max_tokens=options.max_tokens, requests_per_s=options.rate)
    door = FrontDoor(host=serving.host, port=serving.port, keys=_keys(serving), wishes=wishes)
    events = EventStream(write_json if options.as_json else write_text)
    patience = Patience(n_restarts=options.restarts, drain_s=options.drain_s)

    def ready(supervisor: Supervisor) -> None:
        _tell_ready(supervisor, serving, models, served, as_json=options.as_json)
        events.open()

    try:
        with tempfile.TemporaryDirectory(prefix="quantplan-gateway-") as work:
            serve_behind(models, door, tools=find_toolchain(explicit=options.llama), work=Path(work),
                         on_event=events, patience=patience, ready=ready)  # fmt: skip
    except KeyboardInterrupt:
        pass
    finally:
        events.close()
    say("stopped")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _models(served: Served, options: Any) -> dict[str, Model]:
    from quantplan.errors import BadValue
    from quantplan.serving.gateway.router import Model
    from quantplan.serving.source import admit, find_served

    models = {served.plan.model: Model(file=served.model.resolve(), plan=served.plan)}
    for path in options.also:
        more = find_served(path)
        say(f"checking {more.model.name} against its receipt")
        admit(more, allow_unvalidated=options.allow_unvalidated, say=say)
        name = more.plan.model if more.plan.model not in models else more.model.stem
        if name in models:
            raise BadValue(what="model", value=name, why="would be served twice")
        models[name] = Model(file=more.model.resolve(), plan=more.plan)
    return models


def _keys(serving: Serving) -> dict[bytes, Key]:
    from quantplan.serving.gateway.keys import read_keys

    return read_keys(serving.api_key_file) if serving.api_key_file else {}


def _tell_ready(
    supervisor: Supervisor, serving: Serving, models: dict[str, Model], served: Served, *, as_json: bool
) -> None:
    if not as_json:
        for name, model in models.items():
            say(f"{name}: {model.plan.n_parallel} slot(s) of {model.plan.n_ctx_per_slot:,} tokens")
        click.echo(serving.url)
        return
    from quantplan.report.document import render, success

    data = {
        "url": serving.url, "pid": supervisor.pid, "argv": supervisor.launch.argv, "ready_s": supervisor.ready_s,
        "artifact": served.model.parent, "artifact_sha256": served.sha256, "plan": served.plan,
        "runtime": supervisor.launch.runtime, "cannot": supervisor.launch.cannot,
    }  # fmt: skip
    click.echo(render(success("serve", data), one_line=True))
    sys.stdout.flush()
