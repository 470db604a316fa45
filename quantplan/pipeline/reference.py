"""The 16-bit GGUF that an artifact is measured against: given, left by the build, or made from the source."""

from __future__ import annotations

import sys
from pathlib import Path

from quantplan.artifact.receipt import Receipt
from quantplan.llama import commands
from quantplan.llama.process import Runner
from quantplan.pipeline.steps import PARTIAL, Tell, verify_gguf


def left_by_build(folder: Path, receipt: Receipt) -> Path | None:
    """The 16-bit GGUF in the work folder beside an artifact folder, when it is still what the receipt says that the
    artifact was quantized from."""
    from quantplan.artifact.receipt import sha256_of

    inputs = {entry.sha256 for step in receipt.steps for entry in step.inputs if entry.name.endswith(".gguf")}
    name = str(receipt.source.get("name") or "")
    for found in sorted((folder.parent / ".work" / name).rglob("*.gguf")) if name else ():
        if found.stat().st_size and sha256_of(found) in inputs:
            return found
    return None


def make_reference(source: Path, target: Path, *, converter: Path, run: Runner, tell: Tell) -> Path:
    """The source converted as it is (bf16), whole or not at all."""
    partial = target.with_name(target.name + PARTIAL)
    argv = commands.convert((sys.executable,), converter, source.resolve(), partial)
    tell("convert the reference", "running")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        run(argv, step="convert the reference", extra_env=offline)
        verify_gguf(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
