"""`quantplan pull`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.cli.pull_source import Chosen
    from quantplan.pipeline.pull import Pulled


@click.command("pull", epilog="Example: quantplan pull bartowski/Llama-3.2-3B-Instruct-GGUF --quant Q4_K_M")
@click.argument("model", required=False)
@click.option("--quant", metavar="PRESET", help="Take this one; left out, the planner chooses for this host.")
@click.option("--ctx", "n_ctx", type=int, help="Tokens of context a slot that the planner chooses for.")
@click.option("--reference", default="auto", show_default=True, metavar="auto|none|base|FILE",
              help="What to judge it by: the repository's BF16 or Q8_0 (else one built from its base model), nothing, "
              "the base model, or this GGUF.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("artifacts"),
              show_default=True, help="Folder of the artifact folders.")  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="[NAME=]FILE", help="Judge on this text (repeatable).")
@click.option("--policy", metavar="NAME|FILE", help="As of `quantplan gate`: standard (the default), strict, lenient …")
@click.option("--chunks", type=click.IntRange(20, 100_000), help="The most windows of a text, instead of the policy's.")
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--held", is_flag=True, help="List what Ollama, LM Studio and the Hugging Face cache hold, and stop.")
@json_option
def command(model: str | None, held: bool, as_json: bool, **options: Any) -> int:
    """Take a GGUF that somebody else made: choose, download, check every byte, scan, judge, and write a receipt.

    MODEL is a GGUF repository of the hub (org/name[:QUANT][@revision], org/name/file.gguf), a local file,
    ollama:NAME[:TAG], lmstudio:PUBLISHER/NAME or hf:ORG/NAME: what is here already is linked, not copied.
    Exit status 0: judged and passed, or unmeasured; 4: unsound or failed; 5: inconclusive.
    """
    if held:
        return _list_held(as_json=as_json)
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    from quantplan.cli.pull_run import run

    chosen, pulled, warnings = run(model, say=say, **options)
    verdict = pulled.judgement.verdict.value
    emit(
        "pull", _told(chosen, pulled), as_json=as_json, text=_text(chosen, pulled),
        ok=verdict in ("pass", "unmeasured"), warnings=(*chosen.warnings, *warnings),
    )  # fmt: skip
    return {"pass": 0, "unmeasured": 0, "inconclusive": 5}.get(verdict, 4)


def _told(chosen: Chosen, pulled: Pulled) -> dict[str, Any]:
    return {
        "folder": pulled.folder, "files": pulled.files, "label": chosen.label, "chosen": chosen.why,
        "verdict": pulled.judgement.verdict, "reason": pulled.judgement.reason, "metrics": pulled.judgement.metrics,
        "tensor_bytes": pulled.label.tensor_bytes, "promised_bytes": pulled.label.promised_bytes,
        "n_unlike": pulled.label.n_unlike, "findings": (*pulled.findings, *pulled.label.findings),
        "linked": pulled.linked, "fresh": pulled.fresh, "next": _next(pulled),
    }  # fmt: skip


def _next(pulled: Pulled) -> str | None:
    verdict = pulled.judgement.verdict.value
    if verdict == "pass":
        return f"quantplan serve {pulled.folder}"
    return f"quantplan serve {pulled.folder} --allow-unvalidated" if verdict == "unmeasured" else None


def _text(chosen: Chosen, pulled: Pulled) -> str:
    from quantplan.units import format_size

    lines = [
        f"{pulled.folder}  {pulled.judgement.verdict.value.upper()}",
        *(f"  {one.name}  {format_size(one.bytes)}  sha256 {one.sha256[:16]}…" for one in pulled.files),
        f"  chosen   {chosen.why}",
        f"  label    {_label(pulled)}",
        *(f"  {one.severity.value:<8} {one.message}" for one in (*pulled.findings, *pulled.label.findings)),
        *(f"  linked   {text}" for text in dict.fromkeys(one.text for one in pulled.linked)),
        f"  verdict  {pulled.judgement.reason}",
    ]
    following = _next(pulled)
    return "\n".join([*lines, f"Next: {following}"] if following else lines)


def _label(pulled: Pulled) -> str:
    found = pulled.label
    if found.promised_bytes is None:
        return f"{found.label}: no recipe to hold it to"
    same = "every tensor as its recipe has it" if not found.n_unlike else f"{found.n_unlike} tensors are of other types"
    return f"{found.label}: {same}, {found.tensor_bytes:,} bytes of tensors, {found.promised_bytes:,} promised"


def _list_held(*, as_json: bool) -> int:
    from quantplan.model.local_stores import STORES, held
    from quantplan.units import format_size

    found = [one for store in STORES for one in held(store)]
    rows = [
        {"model": f"{one.store}:{one.name}", "quant": one.quant, "bytes": one.n_bytes, "files": one.files}
        for one in found
    ]
    lines = [f"{format_size(one.n_bytes):>10}  {one.quant or '?':<8} {one.store}:{one.name}" for one in found]
    text = "\n".join(lines) or "Ollama, LM Studio and the Hugging Face cache hold no GGUF here."
    emit("pull-held", {"models": rows}, as_json=as_json, text=text)
    return 0
