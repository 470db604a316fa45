"""`quantplan verify-serving`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.options import emit, json_option

_PATH = click.Path(path_type=Path)


@click.command(
    "verify-serving",
    epilog="Example: quantplan verify-serving http://127.0.0.1:8080 --plan artifacts/quantplan-tiny-Q4_K_M/plan.json",
)
@click.argument("url")
@click.option("--plan", "plan", type=_PATH, required=True, help="The plan, or the artifact that was to be served.")
@click.option("--model", type=_PATH, help="The model file, where it does not lie beside the plan.")
@click.option("--api-key-file", type=_PATH, help="File of the server's API keys; the first one is used.")
@click.option("--pid", type=click.IntRange(1), help="The server's process (default: found by its port).")
@click.option("--require", type=click.Choice(["all", "local", "remote"]), default="all", show_default=True,
              help="local: the process must be in sight; remote: what HTTP tells is enough.")  # fmt: skip
@click.option("--from-outside", is_flag=True, help="Use HTTP only, also where the process is in sight.")
@click.option("--public", is_flag=True, help="A public address with a key is what was wanted.")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 86400), default=0.0,
              help="Seconds to wait until it is ready (default: not at all).")  # fmt: skip
@json_option
@click.pass_context
def command(ctx: click.Context, /, url: str, plan: Path, model: Path | None, as_json: bool, **given: Any) -> None:
    """Is what is served at URL what was planned? Each item is ok, mismatch or not verifiable here.

    Exit 0 when all that the plan requires are ok, 4 on a mismatch, 5 when something required cannot be verified from
    here: with HTTP alone that is most of a plan, unless --require remote says that what HTTP tells is enough.
    """
    from quantplan.report.serving import verification_text
    from quantplan.serving.api_key import keys_in
    from quantplan.serving.contract import expected_of
    from quantplan.serving.launch import wait_ready
    from quantplan.serving.source import find_served
    from quantplan.serving.verify import verify

    if given["wait_s"]:
        wait_ready(url, timeout_s=given["wait_s"])
    key = keys_in(given["api_key_file"])[0] if given["api_key_file"] else None
    expected = expected_of(find_served(plan, model=model, must_exist=False), key=key, public=given["public"])
    report = verify(url, expected, pid=given["pid"], require=given["require"], remote_only=given["from_outside"])
    passed = report.exit_code == 0
    emit("verify-serving", report, as_json=as_json, text=verification_text(report), ok=passed)
    ctx.exit(int(report.exit_code))
