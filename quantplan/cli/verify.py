"""`quantplan verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantplan.cli.options import emit, json_option

if TYPE_CHECKING:
    from quantplan.pipeline.verify import Verification


@click.command("verify", epilog="Example: quantplan verify artifacts/quantplan-tiny-Q4_K_M")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="The signer's public key (PEM); the signature must hold.")  # fmt: skip
@json_option
def command(artifact: Path, key: Path | None, as_json: bool) -> int:
    """Check ARTIFACT (its folder, its artifact.json or the GGUF in it) against its own receipt, without a network.

    Every file is hashed; structure, receipt, plan, results and signature must agree. Exit status 4 when something no
    longer matches.
    """
    from quantplan.artifact.store import artifact_folder
    from quantplan.pipeline.verify import verify_artifact

    found = verify_artifact(artifact_folder(artifact), public_key=key)
    data = {
        "folder": found.folder, "model": found.receipt.model_file, "quant": found.receipt.quant,
        "files": found.n_files, "bytes": found.n_bytes, "results": found.n_results, "signature": found.signature,
        "findings": found.findings,
    }  # fmt: skip
    emit("verify", data, as_json=as_json, text=_text(found), ok=found.ok)
    return 0 if found.ok else 4


def _text(found: Verification) -> str:
    from quantplan.units import format_size

    head = "matches its receipt" if found.ok else "DOES NOT MATCH its receipt"
    lines = [
        f"{found.folder}  {head}",
        f"  {found.n_files} file(s), {format_size(found.n_bytes)}; {found.n_results} result(s); "
        f"signature: {found.signature}",
    ]
    return "\n".join([*lines, *(f"  {one.severity.value:<8} {one.file}: {one.message}" for one in found.findings)])
