"""`quantplan export client`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.serving.source import Served

_PATH = click.Path(path_type=Path)


@click.command(
    "client", epilog="Example: quantplan export client artifacts/quantplan-tiny-Q4_K_M --lang python --output app/"
)
@click.argument("artifact", type=_PATH, required=False)
@click.option("--lang", type=click.Choice(("typescript", "python")), required=True, help="What it is written in.")
@click.option("--plan", "plan_file", type=_PATH, help="Another plan than the artifact's own, or a plan alone.")
@click.option("--output", type=_PATH, help="Write the files to this folder (default: print a single one).")
@click.option("--base-url", default="http://127.0.0.1:8080", show_default=True, help="Where the server is reached.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of an answer, where the gateway has a limit.")
@click.option("--allow-unvalidated", is_flag=True, help="Export without a passing gate result.")
@json_option
def command(**given: Any) -> None:
    """A typed client that keeps to the plan: its context, its slots, its speed.

    TypeScript on the platform's fetch, or Python on httpx. No key is written; it is given when the client is made.
    """
    from quantplan.errors import SeveralFiles
    from quantplan.serving.clients.generate import Language, client_files
    from quantplan.serving.clients.limits import client_limits
    from quantplan.serving.export.exported import File
    from quantplan.serving.export.write import write_files

    served = _served(given["artifact"], given["plan_file"], allow_unvalidated=given["allow_unvalidated"])
    limits = client_limits(
        served.plan, sha256=served.sha256, base_url=given["base_url"], max_tokens=given["max_tokens"]
    )
    found = client_files(Language(given["lang"]), limits)
    files = tuple(File(name=name, text=text) for name, text in found.items())
    folder, as_json = given["output"], given["as_json"]
    text = files[0].text.removesuffix("\n")
    if folder is not None:
        text = "\n".join(map(str, write_files(folder, files)))
    elif len(files) > 1 and not as_json:
        raise SeveralFiles(target=f"a {given['lang']} client", names=tuple(found))
    data = {"format": "client", "language": given["lang"], "limits": limits, "files": files, "output": folder}
    emit("export-client", data, as_json=as_json, text=text)


def _served(artifact: Path | None, plan_file: Path | None, *, allow_unvalidated: bool) -> Served:
    """The artifact with its plan; or a plan alone, whose model need not be on this machine. Raises BadArtifact."""
    from quantplan.errors import BadArtifact, BadValue
    from quantplan.serving.source import admit, find_served

    source = artifact or plan_file
    if source is None:
        raise BadValue(what="artifact", value=None, why="is missing: name its folder, or a plan")
    served = find_served(source, plan_file=plan_file if artifact else None, must_exist=False)
    if served.artifact is not None:
        admit(served, allow_unvalidated=allow_unvalidated, say=say)
    elif not allow_unvalidated:
        raise BadArtifact(path=source, why="has no receipt and no gate result")
    else:
        say("WARNING: a client of a plan that no artifact was validated for, as asked")
    return served
