"""`quantplan serve`."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.gateway import gateway_options, serve_with_gateway
from quantplan.cli.options import say
from quantplan.cli.printable import printable

if TYPE_CHECKING:
    from quantplan.cli.event_stream import EventStream
    from quantplan.serving.runtimes import Launch, Serving
    from quantplan.serving.source import Served
    from quantplan.serving.supervise import Supervisor

_PATH = click.Path(path_type=Path)
_RUNTIMES = ("llama-server", "llama-cpp-python", "vllm", "ollama")


@click.command("serve", epilog="Example: quantplan serve artifacts/quantplan-tiny-Q4_K_M")
@click.argument("artifact", type=_PATH)
@click.option("--plan", "plan_file", type=_PATH, help="Another plan than the artifact's own.")
@click.option("--model", type=_PATH, help="The model file, where a plan is given that does not lie beside it.")
@click.option("--runtime", type=click.Choice(_RUNTIMES), help="The engine (default: the plan's, llama-server).")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--public", is_flag=True, help="Allow an address that other machines can reach; needs a key.")
@click.option("--api-key-file", type=_PATH, help="File of API keys, one a line; made (mode 0600) when it is missing.")
@click.option("--llama", type=_PATH, help="Folder of the llama.cpp tools.")
@click.option("--any-host", is_flag=True, help="Serve a plan that was made for another machine.")
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing gate result; the log says so.")
@click.option("--restarts", type=click.IntRange(0, 1000), default=5, show_default=True,
              help="Starts after crashes within ten minutes, before giving up.")  # fmt: skip
@click.option("--drain", "drain_s", type=click.FloatRange(0, 3600), default=30.0, show_default=True,
              help="Seconds that running requests have after SIGTERM.")  # fmt: skip
@click.option("--watch", "watch_s", type=click.FloatRange(0.1, 3600),
              help="Every so many seconds an event with memory against the plan.")  # fmt: skip
@click.option("--prompt", help="Ask this once when the server is up, print the answer and stop.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when ready, then one event a line.")
def command(**given: Any) -> None:
    """Serve ARTIFACT (its folder, its artifact.json or the GGUF in it, or a plan file) exactly as planned.

    Refused when a file does not match its receipt, when the newest gate result is not a pass, when the plan was made
    for another machine, and when less memory is free now than it needs. An engine that dies is started again.
    SIGTERM and Ctrl-C accept no new connection, let running requests end, and stop.
    """
    _serve(Options(**given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    artifact: Path
    plan_file: Path | None
    model: Path | None
    runtime: str | None
    host: str
    port: int
    public: bool
    api_key_file: Path | None
    llama: Path | None
    any_host: bool
    allow_unvalidated: bool
    restarts: int
    drain_s: float
    watch_s: float | None
    prompt: str | None
    gateway: bool
    also: tuple[Path, ...]
    queue: int | None
    max_tokens: int | None
    rate: float | None
    as_json: bool


def _serve(options: Options) -> None:
    """Checks, starts and keeps the server until a signal comes."""
    import tempfile

    from quantplan.cli.event_stream import EventStream, write_json, write_text
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.serving.runtimes import Runtime, launch_of
    from quantplan.serving.source import find_served
    from quantplan.serving.supervise import Patience, Supervisor

    served = find_served(options.artifact, plan_file=options.plan_file, model=options.model)
    kind = Runtime(options.runtime or served.plan.runtime)
    serving = _checked(served, options)
    if options.gateway or options.also:
        serve_with_gateway(served, serving, options)
        return
    tools = find_toolchain(explicit=options.llama) if kind in (Runtime.LLAMA_SERVER, Runtime.LLAMA_CPP_PYTHON) else None
    with tempfile.TemporaryDirectory(prefix="quantplan-serve-") as work:
        model = served.model.resolve()
        launch = launch_of(kind, served.plan, model=model, serving=serving, tools=tools, work=Path(work))
        for lost in launch.cannot:
            say(f"Warning: {lost}")
        events = EventStream(write_json if options.as_json else write_text)
        supervisor = Supervisor(launch, on_event=events, artifact=str(model.parent),
                                patience=Patience(n_restarts=options.restarts, drain_s=options.drain_s))  # fmt: skip
        try:
            _run(supervisor, served, launch, tools, events, options)
        finally:
            supervisor.close()
            events.close()


def _checked(served: Served, options: Options) -> Serving:
    """Where to listen, once nothing speaks against it: files, gate, bind, key, machine, memory, port, in that order."""
    import os

    from quantplan.hardware.host import host_for
    from quantplan.hardware.processes import largest_holders
    from quantplan.llama.process import unmaskable_settings
    from quantplan.serving.api_key import protected_key_file
    from quantplan.serving.bind import check_bind
    from quantplan.serving.launch import check_port
    from quantplan.serving.room import check_host, check_room
    from quantplan.serving.runtimes import Serving
    from quantplan.serving.source import admit

    say(f"checking {served.model.name} against its receipt")
    admit(served, allow_unvalidated=options.allow_unvalidated, say=say)
    check_bind(options.host, public=options.public, has_key=options.api_key_file is not None)
    key_file = None
    if options.api_key_file is not None:
        key_file, made = protected_key_file(options.api_key_file.absolute(), environ=os.environ)
        if made:
            say(f"made an API key: {key_file}")
    host = host_for(None)
    warnings = (*check_host(served.plan, host, any_host=options.any_host),
                *check_room(served.plan, host, holders=largest_holders))  # fmt: skip
    for warning in (*warnings, *unmaskable_settings()):
        say(f"Warning: {warning}")
    check_port(options.host, options.port)
    return Serving(host=options.host, port=options.port, api_key_file=key_file)


def _run(
    supervisor: Supervisor, served: Served, launch: Launch, tools: Any, events: EventStream, options: Options
) -> None:
    from quantplan.serving.launch import chat
    from quantplan.serving.watching import watching

    if not options.as_json:
        events.open()
    stopped = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt  # a second signal waits for nobody
        stopped = True
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):  # also where a shell started us in the background, SIGINT ignored
        signal.signal(number, on_signal)
    with watching(served.plan, events, interval_s=options.watch_s):
        supervisor.start()
        if not stopped:
            _tell_ready(supervisor, served, launch, tools, as_json=options.as_json)
            events.open()
            if options.prompt is not None:
                click.echo(printable(chat(launch.url, options.prompt, max_tokens=64, key=launch.key)))
                supervisor.stop()
        supervisor.run()
    say("stopped")


def _tell_ready(supervisor: Supervisor, served: Served, launch: Launch, tools: Any, *, as_json: bool) -> None:
    plan = served.plan
    if not as_json:
        say(f"ready after {supervisor.ready_s:.1f} s: {plan.n_parallel} slot(s) of {plan.n_ctx_per_slot:,} tokens")
        click.echo(launch.url)
        return
    import sys

    from quantplan.report.document import render, success

    data = {
        "url": launch.url, "pid": supervisor.pid, "argv": launch.argv, "ready_s": supervisor.ready_s,
        "artifact": served.model.parent, "artifact_sha256": served.sha256, "plan": plan,
        "runtime": launch.runtime, "cannot": launch.cannot,
    }  # fmt: skip
    engine = tools.engine("llama-server") if tools else None
    click.echo(render(success("serve", data, engine=engine), one_line=True))
    sys.stdout.flush()
