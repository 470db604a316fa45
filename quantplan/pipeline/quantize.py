"""Quantization of the converted file, and splitting of large results."""

from __future__ import annotations

import re
from pathlib import Path

from quantplan.artifact.receipt import FileEntry
from quantplan.llama import commands, output
from quantplan.llama.process import Runner
from quantplan.llama.types import Completed
from quantplan.pipeline.files import remove
from quantplan.pipeline.imatrix import tool_build
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import CONVERTED, IMATRIX
from quantplan.pipeline.steps import NotWhole, Step, shown, verify_gguf


def quantize_step(work: Workplace, quant: str, inputs: tuple[FileEntry, ...], *, imatrix: bool) -> Step:
    """llama-quantize of the converted file, in the work folder: names inside the file are relative."""
    request, name = work.request, work.file_name(quant)
    asked = quant in request.quants
    argv = commands.quantize(
        request.tools.programs["llama-quantize"], Path(work.file_name(CONVERTED)), Path(name + ".partial"), quant,
        n_threads=request.settings.n_threads, imatrix=Path(work.file_name(IMATRIX)) if imatrix else None,
        overrides=request.overrides if asked else None,
    )  # fmt: skip
    # The bytes do not depend on the number of threads: it is left out of what the step is keyed by.
    return Step(
        name=f"quantize {quant}", argv=argv, shown_argv=shown(argv[:-1], folder=work.folder), inputs=inputs,
        output=name, tool_build=tool_build(work), verify=verify_gguf, progress=_tensors_done,
        expected_bytes=request.sizes.of(quant) if request.sizes else None,
    )  # fmt: skip


def _tensors_done(text: str) -> str | None:
    done = output.quantize_progress(text)
    return f"{done[0]} of {done[1]} tensors" if done else None


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def split_step(work: Workplace, key: str, whole: FileEntry) -> Step:
    """llama-gguf-split into a folder of its own: all files or none."""
    assert work.request.split_bytes is not None
    name = work.file_name(key)
    stem = whole.name.removesuffix(".gguf")
    argv = commands.split(
        work.request.tools.programs["llama-gguf-split"], Path(whole.name), Path(name + ".partial") / stem,
        max_bytes=work.request.split_bytes,
    )  # fmt: skip

    def attempt(partial: Path, run: Runner) -> Completed:
        remove(partial)
        partial.mkdir()
        return run(argv, step=f"split {stem}")

    return Step(
        name=f"split {stem}", argv=argv, shown_argv=shown(argv, folder=work.folder), inputs=(whole,), output=name,
        tool_build=tool_build(work), attempt=attempt, verify=_verify_shards, progress=_file_written,
        expected_bytes=whole.bytes,
    )  # fmt: skip


def _file_written(text: str) -> str | None:
    name = output.split_progress(text)
    return f"writing {Path(name).name}" if name else None


def _verify_shards(folder: Path) -> None:
    """Every shard of the count that their names tell, each whole."""
    found = sorted(folder.iterdir())
    counts = {int(match[2]) for path in found if (match := _SHARD.search(path.name))}
    if counts != {len(found)}:
        raise NotWhole(path=folder, why=f"{len(found)} files, their names say {sorted(counts)}")
    for path in found:
        verify_gguf(path)
