"""`quantplan build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.cli.build_request import Allowed
    from quantplan.pipeline.build import BuildRequest, Built


@click.command("build", epilog="Example: quantplan build quantplan-tiny --quant Q4_K_M --quant Q5_K_M")
@click.argument("model")
@click.option("--quant", "quants", multiple=True, default=("Q4_K_M",), show_default=True, metavar="PRESET",
              help="A preset of llama-quantize; may be given several times.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("artifacts"),
              show_default=True, help="Folder of the artifact folders, one a preset: <name>-<QUANT>/.")  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="[NAME=]FILE",
              help="Evaluate on this text instead of the five that ship; may be given several times.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(2, 10_000), default=20, show_default=True,
              help="Windows of 512 tokens a text.")  # fmt: skip
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and what is in the way; build nothing.")
@click.option("--trust-remote-code", is_flag=True, help="Let the conversion run the repository's own Python code.")
@click.option("--allow-pickle", is_flag=True, help="Convert pickled weights (*.bin) where there are no safetensors.")
@click.option("--clean", is_flag=True, help="Delete the intermediates afterwards (the 16-bit GGUF, Q8_0).")
@json_option
def command(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: str, quants: tuple[str, ...], output: Path, texts: tuple[str, ...], chunks: int, llama: Path | None,
    dry_run: bool, trust_remote_code: bool, allow_pickle: bool, clean: bool, as_json: bool,
) -> int:  # fmt: skip
    """Download, convert, quantize, evaluate and judge MODEL: org/name[@revision] on the hub, a local Hugging Face
    folder, a catalog name, or the bundled quantplan-tiny.

    One artifact folder a preset: the GGUF, its receipt (artifact.json), the verdict (results/), plan.json and a
    model card. Exit status 0: all passed; 4: one failed its gate; 5: inconclusive.
    """
    from quantplan.cli import build_request
    from quantplan.pipeline import build

    allowed = build_request.Allowed(code=trust_remote_code, pickle=allow_pickle)
    if dry_run:
        return _dry_run(model, quants, output, texts, chunks, llama, allowed, as_json=as_json)
    request = build_request.make(
        model, quants=quants, output=output, texts=texts, n_chunks=chunks, llama=llama, clean=clean, allowed=allowed
    )
    built = build.build(request, tell=_tell)
    verdict = build.passed(built).value
    emit(
        "build", {"verdict": verdict, "artifacts": [_told(one) for one in built], "next": _next(built)},
        as_json=as_json, text=_text(built), engine=request.tools.engine(), ok=verdict == "pass",
        warnings=_warnings(request),
    )  # fmt: skip
    return {"pass": 0, "inconclusive": 5}.get(verdict, 4)


def _dry_run(
    model: str, quants: tuple[str, ...], output: Path, texts: tuple[str, ...], chunks: int, llama: Path | None,
    allowed: Allowed, *, as_json: bool,
) -> int:  # fmt: skip
    """The preflight as a result; the exit status is that of the first thing in the way."""
    from quantplan.cli import build_request
    from quantplan.cli.hints import hint_for
    from quantplan.report.preflight import preflight_text

    found = build_request.preflight(
        model, quants=quants, output=output, texts=texts, n_chunks=chunks, llama=llama, allowed=allowed
    )
    presets = " ".join(f"--quant {quant}" for quant in quants)
    text = preflight_text(found, following=f"quantplan build {model} {presets}")
    emit("build-preflight", found, as_json=as_json, text=text, ok=not found.refusals)
    for refusal in found.refusals:
        if hint := hint_for(refusal):
            say(f"Hint: {hint}")
    return int(found.refusals[0].exit_code) if found.refusals else 0


def _tell(step: str, what: str) -> None:
    say(f"{step}: {what}")


def _warnings(request: BuildRequest) -> tuple[str, ...]:
    from quantplan.llama.process import unmaskable_settings

    return (*request.warnings, *unmaskable_settings())


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
            if metric.name == "kld_mean":
                lines.append(
                    f"    {metric.corpus:<10} KLD {metric.value:.5f} ± {2 * (metric.se or 0):.5f}"
                    f"  limit {metric.limit or 0:.5f}  ({metric.n:,} tokens)"
                )
    following = _next(built)
    return "\n".join([*lines, f"Next: {following}"] if following else lines)
