"""`quantplan load`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.artifact.plan_file import Plan
    from quantplan.artifact.results import Result


@click.command("load", epilog="Example: quantplan load http://127.0.0.1:8080 --plan artifacts/quantplan-tiny-Q4_K_M")
@click.argument("url")
@click.option("--plan", "plan_file", required=True, type=click.Path(path_type=Path), help="A plan, or an artifact.")
@click.option("--streams", type=click.IntRange(1, 1024), help="Requests at once (default: the plan's slots).")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Default: what the answer leaves of the context.")
@click.option("--answer-tokens", type=click.IntRange(2), help="Default: 128, or a quarter of the context.")
@click.option("--requests", type=click.IntRange(1), help="In all (default: four for each stream).")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Its first line is sent as the key.")
@json_option
def command(
    url: str, plan_file: Path, streams: int | None, prompt_tokens: int | None, answer_tokens: int | None,
    requests: int | None, api_key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Load the server at URL with as many streams, and prompts as long, as PLAN has, and hold it to the plan's speed.

    Time to the first token, time per token, goodput, errors, memory peak. Where PLAN is an artifact's, the result is
    kept beside it. Exit code 4 when requests fail or fewer than 95 of 100 keep what the plan promises.
    """
    from quantplan.artifact.plan_file import read_plan
    from quantplan.report.load_text import describe_load

    plan_file = plan_file / "plan.json" if plan_file.is_dir() else plan_file
    plan = read_plan(plan_file)
    asked = _asked(plan, streams, prompt_tokens, answer_tokens, requests)
    result = _run(url, plan, asked, plan_file.parent, api_key_file)
    emit("load", result, as_json=as_json, text=describe_load(result), ok=result.verdict.value == "pass")
    if result.verdict.value != "pass":
        sys.exit(1 if result.verdict.value == "error" else 4)


def _asked(plan: Plan, streams: int | None, prompt: int | None, answer: int | None, requests: int | None) -> Any:
    from quantplan.errors import BadValue
    from quantplan.serving.load import LoadRequest

    n_answer = answer or max(2, min(128, plan.n_ctx_per_slot // 4))
    n_prompt = prompt or plan.n_ctx_per_slot - n_answer
    if n_prompt < 1 or n_prompt + n_answer > plan.n_ctx_per_slot:
        why = f"and {n_answer} of the answer are more than the {plan.n_ctx_per_slot} of a slot"
        raise BadValue(what="prompt tokens", value=n_prompt, why=why)
    n_streams = streams or plan.n_parallel
    return LoadRequest(n_streams=n_streams, n_prompt=n_prompt, n_answer=n_answer, n_requests=requests or 4 * n_streams)


def _run(url: str, plan: Plan, asked: Any, folder: Path, key_file: Path | None) -> Result:
    from quantplan.artifact.history import record_artifact
    from quantplan.artifact.results import write_result
    from quantplan.serving.endpoint import endpoint
    from quantplan.serving.load import measure_prompt, run_load
    from quantplan.serving.load_report import promise_of, result_of
    from quantplan.serving.memory_peak import MemoryPeak

    server = endpoint(url, key=first_key(key_file))
    shape = measure_prompt(server, n_prompt=asked.n_prompt)
    say(f"{asked.n_requests} requests of {asked.n_prompt} + {asked.n_answer} tokens, {asked.n_streams} at once")
    with MemoryPeak(local=server.is_local) as peak:
        shots, seconds = run_load(server, shape, asked)
    sha256, in_artifact = _artifact(plan, folder)
    result = result_of(
        shots, seconds, asked=asked, promise=promise_of(plan, asked), memory=peak.told(),
        artifact_sha256=sha256 or "", tool={"url": server.url, "model": shape.model},
        host={"fingerprint": plan.host_fingerprint}, made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )  # fmt: skip
    if in_artifact:
        say(f"kept in {write_result(folder, 'load', result)}")
        if said := record_artifact(folder):
            say(f"Warning: {said}")
    return result


def _artifact(plan: Plan, folder: Path) -> tuple[str | None, bool]:
    """The hash of the model the plan is for, and whether the plan lies in its artifact."""
    from quantplan.artifact.receipt import NAME, read_receipt

    if (folder / NAME).is_file():
        return read_receipt(folder).model_file.sha256, True
    return plan.source.get("sha256"), False


def first_key(path: Path | None) -> str | None:
    if path is None:
        return None
    from quantplan.errors import BadKeyFile

    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeyFile(path=path, why=getattr(error, "strerror", None) or "is not UTF-8 text") from None
    if not words:
        raise BadKeyFile(path=path, why="holds no key")
    return words[0]
