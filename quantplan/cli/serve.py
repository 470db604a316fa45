"""`quantplan serve`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from quantplan.cli.options import say


@click.command("serve", epilog="Example: quantplan serve artifacts/quantplan-tiny-Q4_K_M")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Another plan than the artifact's own.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing gate result; the log says so.")
@click.option("--prompt", help="Ask this once when the server is up, print the answer and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when the server is ready.")
def command(
    artifact: Path, plan_file: Path | None, port: int, llama: Path | None, allow_unvalidated: bool,
    prompt: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve ARTIFACT (its folder, its artifact.json or the GGUF in it) on 127.0.0.1, exactly as planned.

    Refused when a file does not match its receipt or the newest gate result is not a pass. Ctrl-C stops it.
    """
    from quantplan.artifact.plan_file import read_plan
    from quantplan.artifact.store import find_artifact
    from quantplan.errors import ToolFailed
    from quantplan.llama.toolchain import find_toolchain, unified_per_slot
    from quantplan.planner.plan import server_settings
    from quantplan.serving import launch

    found = find_artifact(artifact)
    say(f"checking {found.model.name} against its receipt")
    launch.admit(found, allow_unvalidated=allow_unvalidated, say=say)
    plan = read_plan(plan_file or found.folder / "plan.json")
    tools = find_toolchain(explicit=llama)
    settings = server_settings(plan, model=found.model.resolve(), port=port)
    for number in (signal.SIGTERM, signal.SIGINT):  # also where a shell started us in the background, SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        with launch.running_server(tools, settings, unified_per_slot=unified_per_slot(tools), log=_log) as running:
            _tell_ready(running, found, plan, tools, as_json=as_json)
            if prompt is not None:
                click.echo(launch.chat(running.url, prompt, max_tokens=64))
                return
            status = running.child.wait()
            raise ToolFailed(step="serve", argv=running.argv, returncode=status, last_lines=())
    except KeyboardInterrupt:
        say("stopped")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _log(line: str) -> None:
    say(f"llama-server | {line}")


def _tell_ready(running: Any, found: Any, plan: Any, tools: Any, *, as_json: bool) -> None:
    if not as_json:
        say(f"ready after {running.ready_s:.1f} s: {plan.n_parallel} slot(s) of {plan.n_ctx_per_slot:,} tokens")
        click.echo(running.url)
        return
    from quantplan.report.document import render, success

    data = {
        "url": running.url, "pid": running.child.pid, "argv": running.argv, "ready_s": running.ready_s,
        "artifact": found.folder, "artifact_sha256": found.receipt.model_file.sha256, "plan": plan,
    }  # fmt: skip
    click.echo(render(success("serve", data, engine=tools.engine("llama-server")), one_line=True))
