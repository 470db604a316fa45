"""`quantplan batch`."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.serving.endpoint import Endpoint


@click.command("batch", epilog="Example: quantplan batch questions.jsonl --artifact artifacts/quantplan-tiny-Q4_K_M")
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--artifact", type=click.Path(path_type=Path), help="Serve this artifact for as long as the job takes.")
@click.option("--url", help="Use a server that runs already.")
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="The throughput plan (default: the artifact's)."
)
@click.option("--parallel", type=click.IntRange(1, 1024), help="Requests at once (default: the plan's slots).")
@click.option("--output", type=click.Path(path_type=Path), help="Results (default: JOB with .results before its end).")
@click.option("--retry-failed", is_flag=True, help="Send again what an earlier run of the job has no answer to.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Its first line is sent as the key.")
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--allow-unvalidated", is_flag=True, help="Serve without a passing gate result; the log says so.")
@json_option
def command(
    job: Path, artifact: Path | None, url: str | None, plan_file: Path | None, parallel: int | None,
    output: Path | None, retry_failed: bool, as_json: bool, **serving: Any,
) -> None:  # fmt: skip
    """Answer the requests of JOB (OpenAI's batch format, JSON lines) and write the results in its order.

    Stop it or lose power when you like: the same command goes on where it was; what is done is not done again.
    Exit code 1 when a request has no answer.
    """
    if (artifact is None) == (url is None):
        raise click.UsageError("name either --artifact or --url")
    for number in (signal.SIGTERM, signal.SIGINT):  # a server we started ends with us
        signal.signal(number, _interrupt)
    results = output or job.with_name(f"{job.stem}.results{job.suffix or '.jsonl'}")
    told = _run(job, results, artifact, url, plan_file, parallel, retry_failed, serving)
    text = f"{results}: {told['requests']} results, {told['failed']} without an answer"
    emit("batch", told, as_json=as_json, text=text, ok=not told["failed"])
    if told["failed"]:
        sys.exit(1)


def _run(
    path: Path, results: Path, artifact: Path | None, url: str | None, plan_file: Path | None, parallel: int | None,
    retry_failed: bool, serving: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from quantplan.artifact.plan_file import read_plan
    from quantplan.errors import BadJob
    from quantplan.serving.batch import run_batch
    from quantplan.serving.batch_file import Journal, read_job

    job = read_job(path)
    plan = read_plan(plan_file) if plan_file else None
    journal = Journal(job, results)
    if results.exists() and not journal.path.exists() and not retry_failed:
        raise BadJob(path=results, line=None, why="is there already: the job is done")
    with journal:
        if retry_failed:
            again = journal.take_up_failed()
            say(f"{again} requests without an answer are sent again")
        if done := len(journal.done):
            say(f"{done} of {len(job)} are done already")
        if any(True for _ in journal.todo()):
            with _server(artifact, url, plan, serving) as (server, n_parallel):
                run_batch(server, journal, n_parallel=parallel or n_parallel, said=_say_progress)
        failed = journal.finish()
    return {"job": path, "results": results, "requests": len(job), "failed": failed}


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _say_progress(progress: Any) -> None:
    every = max(1, progress.of // 20)
    if progress.done % every == 0 or progress.done == progress.of:
        say(f"{progress.done} of {progress.of} done, {progress.failed} without an answer")


@contextlib.contextmanager
def _server(
    artifact: Path | None, url: str | None, plan: Any, serving: dict[str, Any]
) -> Iterator[tuple[Endpoint, int]]:
    """The server and how many requests it is sent at once."""
    from quantplan.cli.load import first_key
    from quantplan.serving.endpoint import endpoint, find_model

    if url is not None:
        server = endpoint(url, key=first_key(serving["api_key_file"]))
        find_model(server)
        yield server, plan.n_parallel if plan else 1
        return
    assert artifact is not None
    from quantplan.llama.toolchain import find_toolchain
    from quantplan.serving.gateway.engine_port import free_port
    from quantplan.serving.kept import kept_running
    from quantplan.serving.runtimes import Runtime, Serving, launch_of
    from quantplan.serving.source import admit, find_served

    found = find_served(artifact)
    admit(found, allow_unvalidated=serving["allow_unvalidated"], say=say)
    plan = plan or found.plan
    tools = find_toolchain(explicit=serving["llama"])
    where = Serving(host="127.0.0.1", port=free_port())
    with tempfile.TemporaryDirectory(prefix="quantplan-batch-") as work:
        launch = launch_of(Runtime.LLAMA_SERVER, plan, model=found.model.resolve(), serving=where, tools=tools,
                           work=Path(work))  # fmt: skip
        with kept_running(launch, on_event=_drop):
            say(f"{plan.model} is served with {plan.n_parallel} slot(s) for the job")
            yield endpoint(launch.url), plan.n_parallel


def _drop(_event: object) -> None:
    pass
