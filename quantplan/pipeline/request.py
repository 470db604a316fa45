"""What a build is asked for, and its work folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import MMPROJ_PREFIX
from quantplan.llama import commands
from quantplan.llama.commands import TypeOverrides
from quantplan.llama.process import Runner
from quantplan.llama.types import Toolchain
from quantplan.pipeline.disk import BuildSizes, DiskMode
from quantplan.pipeline.evaluate import Corpus
from quantplan.pipeline.record import Record
from quantplan.pipeline.schedule import CONVERTED, DIGESTS, IMATRIX, MMPROJ, Work, logits_key
from quantplan.pipeline.source import Source
from quantplan.pipeline.steps import Tell

if TYPE_CHECKING:
    from quantplan.pipeline.remote.weights import RemoteWeights

BASELINE = "Q8_0"
WORK = ".work"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build and how to measure it. `make_plan` plans the finished GGUF for this host, or is None.

    `sizes` are those of every file, where they could be told before the work; `imatrix` is a given importance
    matrix and `calibration` a text to compute one from, at most one of the two.
    """

    source: Source
    quants: tuple[str, ...]
    output: Path
    tools: Toolchain
    converter: Path
    corpora: tuple[Corpus, ...]
    settings: commands.EvalSettings
    make_plan: Callable[[Path, str], Plan | None]
    host: Mapping[str, Any]
    clean: bool = False
    warnings: tuple[str, ...] = ()
    outtype: str = "bf16"  # f32, f16 or bf16
    mmproj: bool = False
    imatrix: Path | None = None
    calibration: Path | None = None
    calibration_chunks: int = -1
    overrides: TypeOverrides = field(default_factory=TypeOverrides)
    split_bytes: int | None = None
    disk: DiskMode = DiskMode.AUTO
    sizes: BuildSizes | None = None
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source_is_ours: bool = False  # downloaded for this build: its weights may be dropped
    remote: RemoteWeights | None = None  # how its weights can be read from the hub; done so where `disk` is REMOTE

    @property
    def converted_as(self) -> str:
        return self.outtype.upper()

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self.output / WORK / self.source.name

    def artifact_folder(self, quant: str) -> Path:
        return self.output / f"{self.source.name}-{quant}"

    def work(self) -> Work:
        """What the schedule needs to know."""
        return Work(
            quants=self.quants, baseline=BASELINE, texts=tuple(corpus.name for corpus in self.corpora),
            converted_as=self.converted_as, mmproj=self.mmproj, split=self.split_bytes is not None,
            imatrix=self.imatrix is not None or self.calibration is not None,
            imatrix_is_given=self.imatrix is not None, source_is_ours=self.source_is_ours,
            remote=self.disk is DiskMode.REMOTE,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The work folder of one source, and the effects that steps need."""

    request: BuildRequest
    folder: Path
    record: Record
    run: Runner
    tell: Tell
    stem: str  # of the model files, after the GGUF naming convention

    def file_name(self, key: str) -> str:
        """The name of a file of the schedule inside the work folder."""
        as_converted = self.request.converted_as
        if key == IMATRIX:
            return "imatrix.gguf"
        if key == DIGESTS:
            return "source.digests.json"
        if key == MMPROJ:
            return f"{MMPROJ_PREFIX}{self.stem}-{as_converted}.gguf"
        if key.startswith("logits "):
            return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', key.removeprefix('logits '))}.logits"
        whole = key.removesuffix(" split")
        name = f"{self.stem}-{as_converted if whole == CONVERTED else whole}"
        return f"{name}.split" if key != whole else f"{name}.gguf"

    def path(self, key: str) -> Path:
        return self.folder / self.file_name(key)

    def logits(self, subject: str, text: str) -> Path:
        return self.path(logits_key(subject, text))


def file_stem(name: str) -> str:
    """The stem of a model's files: <BaseName>-<SizeLabel>-<FineTune>-<Version>, as gguf-py takes a name apart."""
    import gguf

    _, _, base, finetune, version, size = gguf.Metadata.get_model_id_components(name)
    return gguf.naming_convention(name, base, finetune, version, size, None) or name
