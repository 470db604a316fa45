"""`quantplan rm`."""

from __future__ import annotations

from pathlib import Path

import click

from quantplan.cli.list import output_option, told
from quantplan.cli.options import emit, json_option


@click.command("rm", epilog="Example: quantplan rm artifacts/quantplan-tiny-Q2_K")
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@json_option
def command(names: tuple[str, ...], yes: bool, outputs: tuple[Path, ...], as_json: bool) -> None:
    """Delete NAMES: artifact folders, or what `quantplan list` names. Asks first; what an artifact needs stays."""
    from quantplan import errors
    from quantplan.pipeline.inventory import find_item, inventory, remove_item
    from quantplan.units import format_size

    items = inventory(outputs)
    chosen = [find_item(items, name) for name in names]
    for item in chosen:
        if item.needed_by:
            raise errors.StillNeeded(name=item.label, needed_by=item.needed_by)
    what = ", ".join(f"{item.label} ({format_size(item.frees_bytes)})" for item in chosen)
    if not yes and not confirmed(what):
        raise errors.NotConfirmed(what=what)
    for item in chosen:
        remove_item(item)
    freed = sum(item.frees_bytes for item in chosen)
    data = {"deleted": [told(item) for item in chosen], "freed_bytes": freed}
    emit("rm", data, as_json=as_json, text=f"deleted {what}")


def confirmed(what: str) -> bool:
    """Whether somebody at a terminal says yes."""
    import sys

    return sys.stdin.isatty() and click.confirm(f"Delete {what}?", err=True)
