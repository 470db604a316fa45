"""An artifact against its own words, offline: files, hashes, structure, signature, receipt, plan and results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact import sign
from quantplan.artifact.plan_file import read_plan
from quantplan.artifact.receipt import FileEntry, Receipt, read_receipt, sha256_of
from quantplan.artifact.results import Finding, Severity, read_result
from quantplan.errors import BadArtifact, BadModelFile
from quantplan.model.gguf_header import read_gguf_header
from quantplan.model.gguf_split import shard_names
from quantplan.quant.preset_table import PRESETS

PLAN = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at, and what no longer matches. `signature`: holds | broken | not checked | none."""

    folder: Path
    receipt: Receipt
    n_files: int
    n_bytes: int
    n_results: int
    signature: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not any(one.severity is Severity.ERROR for one in self.findings)


def verify_artifact(folder: Path, *, public_key: Path | None = None) -> Verification:
    """Everything that can be checked without a network. Raises BadArtifact where there is no readable receipt."""
    receipt = read_receipt(folder)
    findings = [found for entry in receipt.files for found in _file(folder, entry)]
    findings += _structure(folder, receipt)
    findings += _receipt(folder, receipt)
    findings += _plan(folder, receipt)
    results = sorted((folder / "results").glob("*.json"))
    findings += [found for path in results for found in _result(path, receipt)]
    signature, told = _signature(folder, receipt, public_key)
    return Verification(
        folder=folder, receipt=receipt, n_files=len(receipt.files), n_results=len(results),
        n_bytes=sum(entry.bytes for entry in receipt.files), signature=signature, findings=(*findings, *told),
    )  # fmt: skip


def _file(folder: Path, entry: FileEntry) -> Iterator[Finding]:
    path = folder / entry.name
    if path.is_symlink() and not path.exists():
        yield _error("file", f"its link leads nowhere: {path.readlink()}", entry.name)
    elif not path.is_file():
        yield _error("file", "is named by the receipt and missing", entry.name)
    elif path.stat().st_size != entry.bytes:
        yield _error("size", f"has {path.stat().st_size:,} bytes, its receipt says {entry.bytes:,}", entry.name)
    else:
        try:
            found = sha256_of(path)
        except OSError as error:
            yield _error("file", f"cannot be read: {error.strerror}", entry.name)
            return
        if found != entry.sha256:
            yield _error("sha256", f"sha256 is {found[:16]}…, its receipt says {entry.sha256[:16]}…", entry.name)


def _structure(folder: Path, receipt: Receipt) -> Iterator[Finding]:
    """Whether the model is a GGUF with all its parts, and says the quant that the receipt says."""
    model = receipt.model_file.name
    named = {entry.name for entry in receipt.files}
    lacking = [name for name in shard_names(model) if name not in named]
    if lacking:
        yield _error("shards", f"the receipt names no {lacking[0]}, which belongs to it", model)
    try:
        header = read_gguf_header(folder / model)
    except BadModelFile as error:
        yield _error("structure", error.why, model)
        return
    except OSError:
        return  # told before
    number = header.metadata.get("general.file_type")
    told = next((preset.file_type for preset in PRESETS.values() if preset.file_type_id == number), None)
    if told is not None and receipt.quant in PRESETS and PRESETS[receipt.quant].file_type != told:
        text = f"its general.file_type says {told}, the receipt {receipt.quant}"
        yield Finding(rule="verify/quant", severity=Severity.WARNING, message=text, file=model)


def _receipt(folder: Path, receipt: Receipt) -> Iterator[Finding]:
    """Whether the receipt agrees with itself, and names all models that lie there."""
    seen: dict[str, str] = {}
    for entry in (*receipt.files, *(one for step in receipt.steps for one in step.inputs)):
        known = seen.setdefault(entry.name, entry.sha256)
        if known != entry.sha256 and entry.name in {file.name for file in receipt.files}:
            yield _error("receipt", f"{entry.name} has two hashes in the receipt", "artifact.json")
    outputs = {step.output for step in receipt.steps}
    model = receipt.model_file.name
    made = {model, model.removesuffix(".gguf"), *(entry.name for entry in receipt.files)}
    if receipt.steps and not any(name in made or name.removesuffix(".split") in made or _part(model, name)
                                 for name in outputs):  # fmt: skip
        yield _error("receipt", f"no step of the receipt makes {model}", "artifact.json")
    named = {entry.name for entry in receipt.files}
    for path in sorted(folder.glob("*.gguf")):
        if path.name not in named:
            text = "lies there and is not named by the receipt"
            yield Finding(rule="verify/unnamed", severity=Severity.WARNING, message=text, file=path.name)


def _part(model: str, output: str) -> bool:
    """Whether a split's output folder is that of this model's parts."""
    return output.endswith(".split") and model.startswith(output.removesuffix(".split"))


def _plan(folder: Path, receipt: Receipt) -> Iterator[Finding]:
    if not (folder / PLAN).exists():
        return
    try:
        told = read_plan(folder / PLAN).source.get("sha256")
    except BadModelFile as error:
        yield _error("plan", error.why, PLAN)
        return
    if told is not None and told != receipt.model_file.sha256:
        yield _error("plan", "is about another file", PLAN)


def _result(path: Path, receipt: Receipt) -> Iterator[Finding]:
    name = f"results/{path.name}"
    try:
        result = read_result(path)
    except BadArtifact as error:
        yield _error("result", error.why, name)
        return
    if result.artifact_sha256 != receipt.model_file.sha256:
        yield _error("result", "is about another file", name)


def _signature(folder: Path, receipt: Receipt, key: Path | None) -> tuple[str, tuple[Finding, ...]]:
    if not sign.is_signed(folder):
        if key is None:
            return "none", ()
        return "none", (_error("signature", "a key is given, and the artifact is not signed", sign.SIGNATURE),)
    if key is None:
        text = "it is signed; whose signature it is can be checked with the signer's public key"
        note = Finding(rule="verify/signature", severity=Severity.NOTE, message=text, file=sign.SIGNATURE)
        return "not checked", (note,)
    try:
        sign.check_signature(folder, receipt, public_key=key)
    except BadArtifact as error:
        return "broken", (_error("signature", error.why, sign.SIGNATURE),)
    return "holds", ()


def _error(rule: str, message: str, file: str) -> Finding:
    return Finding(rule=f"verify/{rule}", severity=Severity.ERROR, message=message, file=file)
