"""`quantplan push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, say

if TYPE_CHECKING:
    from quantplan.pipeline.push import Pushed, Ready


@click.command("push", epilog="Example: quantplan push artifacts/quantplan-tiny-Q4_K_M me/quantplan-tiny-GGUF")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made by this.")
@click.option("--revision", metavar="BRANCH", help="Commit to this branch; made from main where it is missing.")
@click.option("--base-model", metavar="ORG/NAME", help="What it was made from, where the receipt names no repository.")
@click.option("--allow-unvalidated", is_flag=True, help="Publish without a passing gate result; the card says so.")
@click.option("--key", "public_key", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="The signer's public key (PEM); the signature must hold.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be sent; change nothing.")
@json_option
def command(artifact: Path, repo: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Publish ARTIFACT in REPO (org/name on the hub): every part of the model, its projector, receipt, results and
    signature in a folder of its own, and a card that tells of all artifacts there from their receipts.

    Only what verifies and has passed its gate; never over another file. Broken off at any moment, the same command
    goes on; the repository shows all of it or nothing.
    """
    from quantplan.model.hub import Hub
    from quantplan.model.hub_push import HubWriter
    from quantplan.pipeline.push import Push, Target

    push = Push(artifact, Target(repo=repo, **given), reader=Hub(), writer=HubWriter())
    ready = push.examine()
    for warning in ready.warnings:
        say(f"Warning: {warning}")
    if dry_run:
        emit("push", _told(ready, None), as_json=as_json, text=_text_of_plan(ready), warnings=())
        return
    pushed = push.run(ready, tell=say)
    emit("push", _told(ready, pushed), as_json=as_json, text=_text(ready, pushed))


def _told(ready: Ready, pushed: Pushed | None) -> dict[str, Any]:
    return {
        "repo": ready.repo, "artifact": ready.artifact.folder, "dry_run": pushed is None,
        "creates_repository": ready.creates_repo, "commit": pushed.commit if pushed else None,
        "uploads": [one.name for one in ready.uploads], "upload_bytes": ready.upload_bytes,
        "unchanged": list(ready.unchanged), "warnings": list(ready.warnings),
    }  # fmt: skip


def _text_of_plan(ready: Ready) -> str:
    from quantplan.units import format_size

    if not ready.uploads:
        return f"{ready.repo}  nothing to push: all of it is there, with this content"
    made = " (to be made)" if ready.creates_repo else ""
    lines = [f"{ready.repo}{made}  would get {len(ready.uploads)} file(s), {format_size(ready.upload_bytes)}"]
    return "\n".join([*lines, *(f"  {one.name}" for one in ready.uploads), *_same(ready)])


def _same(ready: Ready) -> list[str]:
    return [f"  {len(ready.unchanged)} file(s) are there already"] if ready.unchanged else []


def _text(ready: Ready, pushed: Pushed) -> str:
    if not pushed.sent:
        return f"{pushed.repo}  nothing to push: all of it is there, with this content"
    lines = [f"{pushed.repo}  commit {pushed.commit[:12]}: {len(pushed.sent)} file(s)"]
    name = ready.artifact.folder.name
    following = f"Next: hf download {pushed.repo} --include '{name}/*' --local-dir . && quantplan verify {name}"
    return "\n".join([*lines, *(f"  {one}" for one in pushed.sent), following])
