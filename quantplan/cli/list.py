"""`quantplan list`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option

if TYPE_CHECKING:
    from quantplan.pipeline.inventory import Item


def output_option(function: Any) -> Any:
    """`--output FOLDER`, several times: where artifacts are looked for beside those that are remembered."""
    text = "Folder of artifact folders (repeatable); remembered ones are found anyway."
    return click.option("--output", "outputs", multiple=True, type=click.Path(path_type=Path, file_okay=False),
                        default=(Path("artifacts"),), help=text)(function)  # fmt: skip


@click.command("list", epilog="Example: quantplan list --json")
@output_option
@json_option
def command(outputs: tuple[Path, ...], as_json: bool) -> None:
    """What quantplan keeps on this machine: artifacts, work folders, downloads, references, toolchains, caches.

    Sizes are blocks on the disk; "frees" is what deleting it gives back, since linked files are shared.
    """
    from quantplan.pipeline.inventory import inventory

    items = inventory(outputs)
    emit("list", {"items": [told(item) for item in items]}, as_json=as_json, text=table(items))


def told(item: Item) -> dict[str, Any]:
    """One item as JSON."""
    return {
        "kind": item.kind, "name": item.name, "path": item.path, "bytes": item.n_bytes,
        "frees_bytes": item.frees_bytes, "logits_bytes": item.logits_bytes, "needed_by": item.needed_by,
        "may_go": item.stale, "note": item.note,
    }  # fmt: skip


def table(items: Sequence[Item]) -> str:
    """A line an item."""
    from quantplan.units import format_size

    if not items:
        return "Nothing is kept here."
    rows = [f"{'size':>10} {'frees':>10}  what"]
    for item in items:
        why = item.note or (f"needed by {', '.join(item.needed_by)}" if item.needed_by else item.stale)
        scores = f" ({format_size(item.logits_bytes)} of it log-probabilities)" if item.logits_bytes else ""
        tail = f"  {why}" if why else ""
        rows.append(f"{format_size(item.n_bytes):>10} {format_size(item.frees_bytes):>10}  {item.label}{scores}{tail}")
    return "\n".join([*rows, f"{format_size(sum(item.frees_bytes for item in items)):>21}  in all"])
