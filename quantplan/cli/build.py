"""`quantplan build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.build_options import build_options
from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.cli.build_request import Options
    from quantplan.pipeline.build import BuildRequest, Built


@click.command("build", epilog="Example: quantplan build quantplan-tiny --quant Q4_K_M --quant Q5_K_M")
@click.argument("model", required=False)
@build_options
@json_option
def command(model: str | None, **given: Any) -> int:
    """Download, convert, quantize, evaluate and judge MODEL: org/name[@revision] on the hub, a local Hugging Face
    folder, a catalog name, or the bundled quantplan-tiny.

    One artifact folder a preset: the GGUF, its receipt (artifact.json), the verdict (results/), plan.json and a
    model card. Broken off at any moment, the same command goes on where it was; docs/build.md says how.
    Exit status 0: all passed; 4: one failed its gate; 5: inconclusive.
    """
    as_json, show = given.pop("as_json"), {key: given.pop(key) for key in ("explain", "dry_run", "status")}
    if show["status"]:
        return _status(given["output"], model, as_json=as_json)
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    options = _options(given)
    if show["dry_run"]:
        return _dry_run(model, options, as_json=as_json)
    return _build(model, options, explain=show["explain"], as_json=as_json)


def _options(given: dict[str, Any]) -> Options:
    from quantplan.artifact.plan_file import read_plan
    from quantplan.cli.build_request import Allowed, Options

    allowed = Allowed(code=given.pop("trust_remote_code"), pickle=given.pop("allow_pickle"))
    plan_file = given.pop("plan_file")
    plan = read_plan(plan_file) if plan_file else None
    given["quants"] = given["quants"] or ((plan.quant,) if plan else ("Q4_K_M",))
    return Options(plan=plan, clean=not given.pop("keep"), allowed=allowed, **given)


def _build(model: str, options: Options, *, explain: bool, as_json: bool) -> int:
    from quantplan.cli import build_request
    from quantplan.pipeline import build
    from quantplan.report.building import disk_lines, explanation_lines

    request = build_request.make(model, options)
    for warning in request.warnings:
        say(f"Warning: {warning}")
    plan = build.plan_disk(request)
    for line in disk_lines(
        plan, exact=request.sizes is not None, whole=explain, weight_bytes=request.source.weight_bytes
    ):
        say(line)
    if explain:
        for line in explanation_lines(build.explain(request, tell=_tell)[0]):
            say(line)
    built = build.build(request, tell=_tell)
    verdict = build.passed(built).value
    emit(
        "build", {"verdict": verdict, "artifacts": [_told(one) for one in built], "next": _next(built)},
        as_json=as_json, text=_text(built), engine=request.tools.engine(), ok=verdict == "pass",
        warnings=_warnings(request, built),
    )  # fmt: skip
    return {"pass": 0, "inconclusive": 5}.get(verdict, 4)


def _dry_run(model: str, options: Options, *, as_json: bool) -> int:
    """The preflight as a result; the exit status is that of the first thing in the way."""
    from quantplan.cli import build_request
    from quantplan.cli.hints import hint_for
    from quantplan.report.preflight import preflight_text

    found = build_request.preflight(model, options)
    presets = " ".join(f"--quant {quant}" for quant in options.quants)
    text = preflight_text(found, following=f"quantplan build {model} {presets}")
    emit("build-preflight", found, as_json=as_json, text=text, ok=not found.refusals)
    for refusal in found.refusals:
        if hint := hint_for(refusal):
            say(f"Hint: {hint}")
    return int(found.refusals[0].exit_code) if found.refusals else 0


def _status(output: Any, model: str | None, *, as_json: bool) -> int:
    from quantplan.pipeline.workspace import build_status
    from quantplan.report.building import status_text

    found = [one for one in build_status(output) if model is None or one["name"] == model.rstrip("/").split("/")[-1]]
    emit("build-status", {"builds": found}, as_json=as_json, text=status_text(found, output))
    return 0


def _tell(step: str, what: str) -> None:
    say(f"{step}: {what}")


def _warnings(request: BuildRequest, built: tuple[Built, ...]) -> tuple[str, ...]:
    """Those of the end: what was known before the work has been said before it. Results go into the history here;
    that they could not is a warning, never an error."""
    from quantplan.artifact.history import record_artifact
    from quantplan.llama.process import unmaskable_settings

    said = [record_artifact(one.folder) for one in built if one.fresh]
    notes = dict.fromkeys(note for one in built for note in one.notes)
    return (*notes, *(why for why in said if why), *unmaskable_settings())


def _told(built: Built) -> dict[str, Any]:
    return {
        "quant": built.quant,
        "folder": built.folder,
        "file": built.file,
        "verdict": built.judgement.verdict,
        "reason": built.judgement.reason,
        "metrics": built.judgement.metrics,
        "fresh": built.fresh,
    }


def _next(built: tuple[Built, ...]) -> str | None:
    good = [one for one in built if one.judgement.verdict.value == "pass"]
    return f"quantplan serve {good[0].folder}" if good else None


def _text(built: tuple[Built, ...]) -> str:
    from quantplan.units import format_size

    lines = []
    for one in built:
        lines += [
            f"{one.folder}  {one.judgement.verdict.value.upper()}",
            f"  {one.file.name}  {format_size(one.file.bytes)}  sha256 {one.file.sha256[:16]}…",
            f"  {one.judgement.reason}",
        ]
        for metric in one.judgement.metrics:
            if metric.name == "kld_mean" and metric.value is not None:
                lines.append(
                    f"    {metric.corpus:<10} KLD {metric.value:.5f} ± {2 * (metric.se or 0):.5f}"
                    f"  limit {metric.limit or 0:.5f}  ({metric.n:,} tokens)"
                )
    following = _next(built)
    return "\n".join([*lines, f"Next: {following}"] if following else lines)
