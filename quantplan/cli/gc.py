"""`quantplan gc`."""

from __future__ import annotations

from pathlib import Path

import click

from quantplan.cli.list import output_option, table, told
from quantplan.cli.options import emit, json_option


@click.command("gc", epilog="Example: quantplan gc --yes")
@click.option("--yes", is_flag=True, help="Really delete; without it, only what would go is shown.")
@output_option
@json_option
def command(yes: bool, outputs: tuple[Path, ...], as_json: bool) -> None:
    """Show (or with --yes delete) what no artifact needs and what can be made again: work folders of finished builds,
    downloads, references, interrupted rests, toolchains of other versions. Artifacts are never deleted."""
    from quantplan.pipeline.inventory import Kind, inventory, remove_item
    from quantplan.units import format_size

    stale = [one for one in inventory(outputs) if one.stale and not one.needed_by and one.kind is not Kind.ARTIFACT]
    for item in stale if yes else ():
        remove_item(item)
    freed = sum(item.frees_bytes for item in stale)
    data = {"items": [told(item) for item in stale], "frees_bytes": freed, "deleted": yes}
    head = f"{'deleted' if yes else 'would delete'} {len(stale)} item(s), {format_size(freed)}"
    following = "" if yes or not stale else "\nNext: quantplan gc --yes"
    text = f"{head}\n{table(stale)}{following}" if stale else "Nothing to delete."
    emit("gc", data, as_json=as_json, text=text)
