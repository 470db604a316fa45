"""The numbers of a GGUF through the engine's own check: in a process with limits, once the structure is sound."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantplan import errors
from quantplan.artifact.results import Finding, Severity
from quantplan.ggml_types import ggml_types
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Completed, Toolchain
from quantplan.model.gguf_header import GgufHeader
from quantplan.pipeline.scanning.worker import run_worker

BYTES_PER_S = 50_000_000  # slower than any disk that a model lies on: what the check may take at most
START_S = 30
_WORKER = "quantplan.pipeline.scanning.numbers_worker"
_BLOCK = re.compile(r"(?:at|in) block (\d+)")


def library_of(tools: Toolchain | None) -> Path | None:
    """libggml-base of the toolchain, which has the check."""
    folder = tools.library_folder if tools else None
    found = sorted(folder.glob("libggml-base.*")) if folder else []
    return found[0] if found else None


def scan_numbers(path: Path, header: GgufHeader, *, library: Path | None, run: Runner = run_tool) -> tuple[
    Finding, ...]:  # fmt: skip
    """What is no number where the engine reads one: by tensor, with the byte."""
    found: list[Finding] = []
    for number, shard in enumerate(header.shards):
        file = path.parent / Path(shard.path).name
        tensors = [
            (t.name, ggml_types()[t.type_name].value, ggml_types()[t.type_name].type_size, t.n_bytes,
             shard.data_offset + t.offset)
            for t in header.tensors if t.shard == number
        ]  # fmt: skip
        types = {t.name: t.type_name for t in header.tensors if t.shard == number}
        found += _of_file(file, tensors, types, library=library, run=run)
    return tuple(found)


def _of_file(file: Path, tensors: list[tuple[str, int, int, int, int]], types: dict[str, str], *,
             library: Path | None, run: Runner) -> Iterator[Finding]:  # fmt: skip
    seconds = START_S + sum(one[3] for one in tensors) // BYTES_PER_S
    job = {"library": str(library) if library else None, "file": str(file.resolve()), "tensors": tensors,
           "cpu_s": seconds}  # fmt: skip
    try:
        done = run_worker(_WORKER, job, step="check numbers", timeout_s=4.0 * seconds, run=run)
    except errors.ToolFailed as error:
        why = f"the numbers could not be looked at: {error}"
        yield Finding(rule="scan/numbers-unread", severity=Severity.WARNING, message=why, file=file.name)
        return
    yield from _read(done, file, types, by="the engine's check" if library else "our check")


def _read(done: Completed, file: Path, types: dict[str, str], *, by: str) -> Iterator[Finding]:
    told: list[dict[str, Any]] = []
    for line in done.stdout:
        if line.startswith("{"):
            told.append(json.loads(line))
    blocks = iter([_BLOCK.search(line) for line in done.stderr if "ggml_validate" in line or "found" in line])
    for one in told:
        if "tensor" not in one:
            continue
        offset: int | None = one.get("first", one.get("offset"))
        if "size" in one and offset is not None:
            block = next(blocks, None)
            offset += int(block[1]) * int(one["size"]) if block else 0
        what = "ends inside its data" if one.get("ends") else f"{types[one['tensor']]} that is no finite number"
        said = f"{one['tensor']}: {what}" + (f" at byte {offset:,}" if offset is not None else "") + f" ({by})"
        yield Finding(rule="scan/not-finite", severity=Severity.ERROR, message=said, file=file.name, offset=offset,
                      where=f"tensor {one['tensor']!r}", help="do not serve it: it answers with nonsense")  # fmt: skip
    if not any(one.get("done") for one in told):
        why = f"the check of the numbers ended early (exit status {done.returncode}): {' '.join(done.last_lines)[:200]}"
        yield Finding(rule="scan/numbers-unread", severity=Severity.ERROR, message=why, file=file.name)
