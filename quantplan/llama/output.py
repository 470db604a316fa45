"""What the tools print, parsed. Pure functions over lines; golden transcripts in tests/data/llama_output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.llama.types import BuildInfo
from quantplan.units import MIB

_VERSION = re.compile(r"version: (?P<version>\S+)(?: \((?:build (?P<number>\d+), commit )?(?P<commit>[0-9a-f]+)\))?")
_OLD_VERSION = re.compile(r"version: (?P<number>\d+) \((?P<commit>[0-9a-f]+)\)")
_PPL = re.compile(r"Final estimate: PPL = (?P<ppl>\S+) \+/- (?P<se>\S+)")
_CHUNKS = re.compile(r"calculating perplexity over (?P<n>\d+) chunks")
_CHUNK_DONE = re.compile(r"\[(\d+)\]")
_TENSOR_DONE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_WRITTEN = re.compile(r"Writing:\s+(\d+)%")  # tqdm, in gguf-py's gguf_writer.py
_SPLIT_FILE = re.compile(r"Writing file (\S+)")
_FALLBACK = re.compile(r"(\S+)\s*:\s*WARNING:\s*(\d+) of (\d+) tensor\(s\) required fallback")
_BUFFER = re.compile(r"(?P<device>\S+)\s+(?P<kind>model|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[\d.]+) MiB")


def parse_version(lines: Sequence[str]) -> BuildInfo:
    """`--version`: `version: 0.5.0 (build 11312, commit 0c1e570)`, or in older builds `version: 8146 (0c1e570)`."""
    for line in lines:
        if match := _OLD_VERSION.search(line):
            return BuildInfo(version=None, number=int(match["number"]), commit=match["commit"])
        if match := _VERSION.search(line):
            number = int(match["number"]) if match["number"] else None
            return BuildInfo(version=match["version"], number=number, commit=match["commit"])
    return BuildInfo(version=None, number=None, commit=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedPerplexity:
    """The tool's own last line; absent in 13 to 34 % of runs of small models (lost in a log flush)."""

    ppl: float
    se: float


def parse_perplexity(lines: Sequence[str]) -> PrintedPerplexity | None:
    """`Final estimate: PPL = 5.1234 +/- 0.0321`, or None where it was lost or is not a number."""
    for line in reversed(lines):
        if match := _PPL.search(line):
            try:
                return PrintedPerplexity(ppl=float(match["ppl"]), se=float(match["se"]))
            except ValueError:
                return None
    return None


_N_TOKENS = re.compile(r"Total number of tokens: (\d+)")


def parse_token_count(lines: Sequence[str]) -> int | None:
    """`Total number of tokens: 127562` of llama-tokenize, or None where it was lost."""
    for line in reversed(lines):
        if match := _N_TOKENS.search(line):
            return int(match[1])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Share of right answers with the interval that the tool prints: 95 % for HellaSwag, one standard error to
    either side for Winogrande."""

    share: float
    low: float
    high: float
    n: int


_HELLASWAG = re.compile(r"^(\d+)\t\s*([\d.]+)%\t\[\s*([\d.]+)%,\s*([\d.]+)%\]")
_WINOGRANDE = re.compile(r"Final Winogrande score\((\d+) tasks\): ([\d.]+) \+/- ([\d.]+)")


def parse_task_score(kind: str, lines: Sequence[str]) -> TaskScore | None:
    """The last line of `hellaswag` (cumulative rows) or `winogrande`, or None where it was lost."""
    for line in reversed(lines):
        if kind == "hellaswag" and (match := _HELLASWAG.match(line)):
            share, low, high = (float(match[i]) / 100 for i in (2, 3, 4))
            return TaskScore(share=share, low=low, high=high, n=int(match[1]))
        if kind == "winogrande" and (match := _WINOGRANDE.search(line)):
            share, sigma = float(match[2]) / 100, float(match[3]) / 100
            return TaskScore(share=share, low=max(0.0, share - sigma), high=min(1.0, share + sigma), n=int(match[1]))
    return None


def perplexity_progress(text: str) -> int | None:
    """The number of the last chunk in a piece of stdout: `[17]5.1234,`."""
    found = _CHUNK_DONE.findall(text)
    return int(found[-1]) if found else None


def quantize_progress(text: str) -> tuple[int, int] | None:
    """(done, of all) tensors from `[  12/ 201] blk.0.attn_q.weight - [ …`, in llama-quantize's output."""
    found = [match for line in text.splitlines() if (match := _TENSOR_DONE.match(line))]
    return (int(found[-1][1]), int(found[-1][2])) if found else None


def convert_progress(text: str) -> int | None:
    """Percent written, from the bar of convert_hf_to_gguf.py."""
    found = _WRITTEN.findall(text)
    return int(found[-1]) if found else None


def split_progress(text: str) -> str | None:
    """The file that llama-gguf-split writes now."""
    found = _SPLIT_FILE.findall(text)
    return str(found[-1]) if found else None


def parse_fallbacks(lines: Sequence[str]) -> int:
    """How many tensors got another type because their rows do not divide into blocks."""
    for line in lines:
        if match := _FALLBACK.search(line):
            return int(match[2])
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferLine:
    """One buffer that the engine allocated (`-lv 4`)."""

    device: str
    kind: str  # model | KV | RS | compute | output
    n_bytes: int  # printed in hundredths of a MiB


def parse_buffers(lines: Sequence[str]) -> tuple[BufferLine, ...]:
    """`CUDA0 model buffer size = 372.65 MiB` and its kin, in order."""
    found = (match for line in lines if (match := _BUFFER.search(line)))
    return tuple(BufferLine(device=m["device"], kind=m["kind"], n_bytes=round(float(m["mib"]) * MIB)) for m in found)
