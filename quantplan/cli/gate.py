"""`quantplan gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.options import emit, json_option, say

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)


@click.command("gate", epilog="Example: quantplan gate artifacts/quantplan-tiny-Q4_K_M --policy standard")
@click.argument("artifact", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--policy", metavar="NAME|FILE",
              help="standard (the default), strict, lenient, code, reasoning, or a policy file.")  # fmt: skip
@click.option("--explain-policy", is_flag=True, help="Say what the policy demands and how it is tested, and stop.")
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), metavar="RECEIPT",
              help="An artifact that speed and memory are held against.")  # fmt: skip
@click.option("--plan", type=_FILE, metavar="FILE", help="The plan that speed, memory and size are held against.")
@click.option("--reference", type=_FILE, metavar="GGUF", help="The 16-bit GGUF of the same source.")
@click.option("--source", metavar="MODEL", help="Make the reference from this local model (or quantplan-tiny).")
@click.option("--against", type=_FILE, metavar="GGUF", help="Another file of the same label: which damages less?")
@click.option("--label", metavar="PRESET", help="What the file claims to be, where it does not say so itself.")
@click.option("--base-cache", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Keep the reference's log-probabilities for the next gate.")  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="[NAME=]FILE",
              help="Measure on this text instead of the five that ship; may be given several times.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(20, 100_000), help="The most windows of a text, instead of the policy's.")
@click.option("--hellaswag", type=_FILE, help="Answer these HellaSwag tasks too; told, not judged.")
@click.option("--winogrande", type=_FILE, help="Answer these Winogrande tasks too; told, not judged.")
@click.option("--lm-eval", type=_FILE, help="Tell the scores of this result of lm-evaluation-harness too.")
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--junit", type=_OUT, metavar="FILE", help="Write JUnit XML.")
@click.option("--sarif", type=_OUT, metavar="FILE", help="Write SARIF.")
@click.option("--markdown", "--summary", "markdown", type=_OUT, metavar="FILE",
              help="Write Markdown, for a comment.")  # fmt: skip
@click.option("--github", is_flag=True, help="Annotations and a step summary for GitHub Actions.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, artifact: Path | None, policy: str | None, explain_policy: bool, as_json: bool, **how: Any
) -> int:  # fmt: skip
    """Measure ARTIFACT (an artifact folder or any GGUF) against the 16-bit GGUF of the same source, and judge it.

    The test looks at more text until the verdict stands or the budget is spent. Exit status 0: pass; 4: fail; 5:
    inconclusive; 1: could not be measured.
    """
    from quantplan.cli import gate_run
    from quantplan.pipeline.policy import load_policy
    from quantplan.report import gate_text

    rules = load_policy(policy)
    if explain_policy:
        emit("gate", {"policy": rules}, as_json=as_json, text=gate_text.explained(rules))
        return 0
    if artifact is None:
        raise click.UsageError("Missing argument 'ARTIFACT'.", ctx)
    gated = gate_run.gate(artifact, rules, gate_run.Options(**how), tell=lambda step, what: say(f"{step}: {what}"))
    for line in gate_run.ci_files(gated, how):
        click.echo(line, err=as_json)
    emit("gate", gate_run.told(gated), as_json=as_json, text=gate_text.gated(gated.result, gated.name),
         engine=gated.engine, ok=gated.passed, warnings=gated.warnings)  # fmt: skip
    return gated.exit_code
