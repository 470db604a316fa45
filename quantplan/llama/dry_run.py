"""`llama-quantize --dry-run`: the types and the size it would write, without writing."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.llama.commands import Program

# src/llama-quant.cpp (commit 0c1e570), llama_model_quantize_impl():
# `[ 1/ 146] blk.0.attn_k.weight - [ 2048, 512, 1, 1], type = bf16, size = 2.00 MiB -> 0.56 MiB (q4_K)`
_TENSOR = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[[ \d,]+\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?"
)
_TOTAL = re.compile(r"quant size += +([\d.]+) MiB \(([\d.]+) BPW\)")
_NEEDS = "will require an imatrix"


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What was printed: types by tensor in our spelling, the total to the hundredth of a MiB."""

    types: Mapping[str, str]
    quant_mib: str | None
    needs_imatrix: bool


def dry_run(program: Program, source: Path, preset: str, *, imatrix: Path | None = None) -> tuple[str, ...]:
    """The argv."""
    weights = ("--imatrix", str(imatrix)) if imatrix else ()
    return (*program, "--dry-run", *weights, str(source), preset)


def parse_dry_run(lines: Sequence[str]) -> DryRun:
    """Of both streams' lines, in any order."""
    types: dict[str, str] = {}
    quant_mib = None
    for line in lines:
        row = _TENSOR.match(line)
        if row:
            types[row[1]] = (row[3] or row[2]).upper()
        total = _TOTAL.search(line)
        if total:
            quant_mib = total[1]
    return DryRun(types=types, quant_mib=quant_mib, needs_imatrix=any(_NEEDS in line for line in lines))


def write_smallest_imatrix(path: Path) -> None:
    """An importance matrix of one tensor and one value: a dry run only asks whether there is one.

    The old format of tools/imatrix: count, then name length, name, calls, values and the values.
    """
    name = b"output.weight"
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<iif", 1, 1, 1.0))
