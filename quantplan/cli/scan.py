"""`quantplan scan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import emit, json_option

if TYPE_CHECKING:
    from quantplan.artifact.results import Finding
    from quantplan.llama.types import Toolchain
    from quantplan.pipeline.scanning.scan import Scanned


@click.command("scan", epilog="Example: quantplan scan model-Q4_K_M.gguf --sarif scan.sarif")
@click.argument("target", metavar="FILE|DIR|REPO")
@click.option("--base", default="auto", show_default=True, metavar="auto|none|REPO|DIR",
              help="Hold the template against this source's; auto: the base model that the file names.")  # fmt: skip
@click.option("--no-data", is_flag=True, help="Leave the tensors' numbers out: only what the header and texts say.")
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools.")
@click.option("--sarif", type=click.Path(path_type=Path, dir_okay=False), help="Also write SARIF 2.1.0 to this file.")
@json_option
def command(target: str, base: str, no_data: bool, llama: Path | None, sarif: Path | None, as_json: bool) -> int:
    """What could hurt in a model from a stranger: its structure, numbers, chat template, metadata, pickles and code.

    Nothing is loaded, unpickled or run; a template is rendered in a sandbox. A repository of the hub (org/name,
    org/name:QUANT, org/name/file.gguf) is read by ranges, without its weights. docs/scan.md has every rule.
    Exit status: 0 nothing but notes, 4 an error or a warning.
    """
    from quantplan.pipeline.scanning.scan import Request, scan

    found = scan(target, Request(base=base, with_data=not no_data, tools=_tools(llama)))
    if sarif:
        from quantplan.report.ci_files import CiTargets, write_ci_files

        write_ci_files(CiTargets(sarif=sarif), (), found.findings)
    ok = found.verdict.value == "pass"
    emit("scan", found, as_json=as_json, text=_text(found), ok=ok)
    return 0 if ok else 4


def _tools(llama: Path | None) -> Toolchain | None:
    """The engine here, whose check of the numbers is used and whose build is looked at; None where there is none."""
    from quantplan.errors import ToolMissing
    from quantplan.llama.toolchain import find_toolchain

    try:
        return find_toolchain(explicit=llama)
    except ToolMissing:
        if llama is not None:
            raise
        return None


def _text(found: Scanned) -> str:
    lines = [line for one in found.findings for line in _lines(one)]
    files = "1 file" if found.n_files == 1 else f"{found.n_files:,} files"
    words = ("error", "warning", "note")
    counts = {word: sum(one.severity.value == word for one in found.findings) for word in words}
    said = ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts.items() if n) or "nothing found"
    numbers = "" if found.numbers else "; the tensors' numbers were not looked at"
    return "\n".join([*lines, f"{found.target}: {files}: {said}{numbers}"])


def _lines(one: Finding) -> list[str]:
    at = [one.file or "", str(one.line) if one.line else ""]
    place = ":".join(part for part in at if part)
    inside = f" ({one.where})" if one.where and one.where not in one.message else ""
    told = f"{place}: " if place else ""
    first = f"{told}{one.severity.value}: {one.message}{inside} [{one.rule.removeprefix('scan/')}]"
    return [first, f"    {one.help}"] if one.help else [first]
