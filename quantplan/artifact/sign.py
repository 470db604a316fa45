"""Signatures over an artifact's receipt and files, in the format of the OpenSSF's model-signing (an extra).

What is measured later (results/), the plan and the card are left out: they may change and the signature holds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import NAME, Receipt
from quantplan.errors import BadArtifact, BadValue, ToolMissing

SIGNATURE = "artifact.sig"
_MODULES = ("model_signing", "OpenSSL")  # model-signing 1.1 imports pyOpenSSL without naming it


def sign_artifact(folder: Path, receipt: Receipt, *, private_key: Path, password: str | None = None) -> Path:
    """Writes artifact.sig with an elliptic-curve key (PEM). Raises ToolMissing, BadValue for a key that is none."""
    signing = _module("signing")
    target = folder / SIGNATURE
    partial = folder / f".{SIGNATURE}.partial"
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
        config.set_hashing_config(_hashing(folder, receipt)).sign(folder, partial)
    except (ValueError, TypeError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise BadValue(what="private key", value=str(private_key), why=f"cannot sign ({_short(error)})") from error
    partial.replace(target)
    return target


def check_signature(folder: Path, receipt: Receipt, *, public_key: Path) -> None:
    """Raises BadArtifact where artifact.sig is not this key's over these very files, ToolMissing without the extra."""
    verifying = _module("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config = config.set_hashing_config(_hashing(folder, receipt)).set_ignore_unsigned_files(True)
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever it raises, the signature does not hold
        raise BadArtifact(path=folder / SIGNATURE, why=f"does not hold: {_short(error)}") from error


def is_signed(folder: Path) -> bool:
    return (folder / SIGNATURE).is_file()


def _hashing(folder: Path, receipt: Receipt) -> Any:
    """Only what the receipt names, and the receipt itself."""
    signed = {NAME, *(entry.name for entry in receipt.files)}
    others = [path for path in folder.iterdir() if path.name not in signed]
    paths = [*others, folder / SIGNATURE, folder / f".{SIGNATURE}.partial"]
    return _module("hashing").Config().set_allow_symlinks(True).set_ignored_paths(paths=paths)


def _module(name: str) -> Any:
    lacking = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    if lacking:
        raise ToolMissing(tool="the sign extra", why=f"is not installed: Python lacks {', '.join(lacking)}")
    import model_signing

    return getattr(model_signing, name)


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
