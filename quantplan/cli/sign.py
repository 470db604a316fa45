"""`quantplan sign`."""

from __future__ import annotations

from pathlib import Path

import click

from quantplan.cli.options import emit, json_option


@click.command("sign", epilog="Example: quantplan sign artifacts/quantplan-tiny-Q4_K_M --key signing.pem")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True,
              help="A private key on an elliptic curve (PEM), as openssl makes them.")  # fmt: skip
@click.option("--password-file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="The first line is the key's password.")  # fmt: skip
@json_option
def command(artifact: Path, key: Path, password_file: Path | None, as_json: bool) -> None:
    """Sign ARTIFACT's receipt and the files that it names, when they match each other: writes artifact.sig.

    Needs the extra `sign`. What is measured later (results) is not part of the signature.
    """
    from quantplan.artifact.sign import sign_artifact
    from quantplan.artifact.store import artifact_folder
    from quantplan.errors import BadArtifact
    from quantplan.pipeline.verify import verify_artifact

    found = verify_artifact(artifact_folder(artifact))
    wrong = next((one for one in found.findings if one.severity.value == "error"), None)
    if wrong is not None and wrong.file != "artifact.sig":
        raise BadArtifact(path=found.folder / (wrong.file or ""), why=f"{wrong.message}: it was not signed")
    password = password_file.read_text(encoding="utf-8").splitlines()[0] if password_file else None
    path = sign_artifact(found.folder, found.receipt, private_key=key, password=password)
    emit("sign", {"signature": path}, as_json=as_json, text=f"{path}")
