"""What is loaded beside a model: a projector, adapters, a draft; and which of the server's buffers are theirs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.llama.output import BufferLine, parse_buffers
from quantplan.model.facts import ModelFacts
from quantplan.rehearsal.holes import holes_folder
from quantplan.units import MIB

# tools/server/server-context.cpp, load_model() (commit 0c1e570): the model and its adapters, the draft, the projector
_DRAFT_BEGINS = re.compile(r"common_speculative_init_result: loading draft model")
_RESERVED = re.compile(r"sched_reserve: .*compute buffer size")  # src/llama-context.cpp
_RESERVED_ALL = re.compile(r"sched_reserve: reserve took")
_PROJECTOR_RESERVES = re.compile(r"reserve_compute_meta:")
_ADAPTER = re.compile(r"(?P<device>\S+)\s+LoRA buffer size\s*=\s*(?P<mib>[\d.]+) MiB")
_PROJECTOR_BACKEND = re.compile(r"clip_ctx: CLIP using (?P<device>\S+) backend")
_PROJECTOR = re.compile(r"load_hparams: model size:\s+(?P<mib>[\d.]+) MiB")  # tools/mtmd/clip.cpp
_ADAPTER_KIND = "LoRA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Projector and adapters are files of the user's; a draft is known by its facts and loaded without weights."""

    mmproj: Path | None = None
    lora: tuple[Path, ...] = ()
    draft: ModelFacts | None = None

    def __bool__(self) -> bool:
        return bool(self.mmproj or self.lora or self.draft)

    @property
    def names(self) -> tuple[str, ...]:
        given = {"a projector": self.mmproj, "an adapter": self.lora, "a draft": self.draft}
        return tuple(name for name, what in given.items() if what)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanionFiles:
    """The files that the server is given."""

    mmproj: Path | None = None
    lora: tuple[Path, ...] = ()
    draft: Path | None = None


@contextlib.contextmanager
def companion_files(companions: Companions, *, folder: Path | None = None) -> Iterator[CompanionFiles]:
    """The companions as files, the draft without weights: for the length of a `with`."""
    from quantplan.rehearsal.engine_word import weightless_file

    with contextlib.ExitStack() as stack:
        draft = companions.draft
        path = None
        if draft is not None:
            place = folder or holes_folder()
            path = stack.enter_context(weightless_file(draft, draft.tensors, synthetic=True, folder=place))
        yield CompanionFiles(mmproj=companions.mmproj, lora=companions.lora, draft=path)


def own_and_companions(lines: Sequence[str]) -> tuple[tuple[BufferLine, ...], tuple[BufferLine, ...]]:
    """The server's buffers: the model's own, and its companions'.

    With adapters the model's graph is reserved again once they are applied: those buffers replace the first ones.
    """
    own: list[BufferLine] = []
    beside = list(_unnamed(lines))
    drafts_left = 0  # reservations that the draft's own context still has to print
    for line in lines:
        if _DRAFT_BEGINS.search(line):
            drafts_left = 1
        reserved = bool(_RESERVED.search(line))
        for buffer in parse_buffers((line,)):
            if drafts_left or _PROJECTOR_RESERVES.search(line):
                beside.append(buffer)
            else:
                replaced = [b for b in own if not (reserved and b.kind == "compute" and b.device == buffer.device)]
                own = [*replaced, buffer]
        if _RESERVED_ALL.search(line):
            drafts_left = 0
    return tuple(own), tuple(beside)


def _unnamed(lines: Sequence[str]) -> Iterator[BufferLine]:
    """What the server tells in words of its own: adapters, and the projector's weights on the backend named before."""
    backend = "CPU"
    for line in lines:
        if match := _ADAPTER.search(line):
            yield BufferLine(device=match["device"], kind=_ADAPTER_KIND, n_bytes=round(float(match["mib"]) * MIB))
        elif match := _PROJECTOR_BACKEND.search(line):
            backend = match["device"]
        elif match := _PROJECTOR.search(line):
            yield BufferLine(device=backend, kind="model", n_bytes=round(float(match["mib"]) * MIB))
