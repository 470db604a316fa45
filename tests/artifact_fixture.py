"""A whole artifact of a small GGUF: receipt, one passing result."""

from __future__ import annotations

from pathlib import Path

from gguf_fixture import write_gguf

from quantplan.artifact.receipt import Receipt, StepEntry, entry_of, write_receipt
from quantplan.artifact.results import Result, Verdict, write_result


def artifact(folder: Path, *, split: int = 0) -> Path:
    """A whole artifact of a small GGUF."""
    folder.mkdir(parents=True)
    write_gguf(folder / "m-Q4_K_M.gguf", split_max_tensors=split)
    files = tuple(entry_of(path) for path in sorted(folder.glob("*.gguf")))
    step = StepEntry(name="quantize Q4_K_M", argv=("llama-quantize",), inputs=(), output=files[0].name, seconds=1.0,
                     peak_rss_bytes=None)  # fmt: skip
    write_receipt(folder, Receipt(files=files, quant="Q4_K_M", source={}, tools={}, steps=(step,), texts=()))
    result = Result(artifact_sha256=files[0].sha256, policy="p", verdict=Verdict.PASS, metrics=(), tool={}, host={})
    write_result(folder, "gate", result)
    return folder
