"""From what was typed to a BuildRequest: the model's folder, the tools, the texts, a planner for this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.artifact.plan_file import Plan
from quantplan.cli.options import preset
from quantplan.errors import (
    BadModelFile,
    ImatrixNeeded,
    ToolFailed,
    ToolMissing,
    UnsupportedArchitecture,
)
from quantplan.llama.types import Toolchain
from quantplan.model.read import facts_of
from quantplan.pipeline.build import BuildRequest
from quantplan.pipeline.evaluate import Corpus
from quantplan.places import data_file

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.candidate import Candidate
    from quantplan.pipeline.checks import Preflight
    from quantplan.pipeline.disk import BuildSizes
    from quantplan.pipeline.source import Source

ALL_LAYERS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a source may bring only with a yes: its own Python code, pickled weights."""

    code: bool = False
    pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`quantplan build` as it was typed."""

    quants: tuple[str, ...]
    output: Path
    texts: tuple[str, ...] = ()
    chunks: int = 20
    llama: Path | None = None
    clean: bool = False
    allowed: Allowed = Allowed()
    outtype: str = "bf16"
    mmproj: bool | None = None  # None: where the model sees or hears
    imatrix: Path | None = None
    calibration: Path | None = None
    calibration_chunks: int | None = None
    tensor_types: tuple[str, ...] = ()
    tensor_type_file: Path | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    split_max_size: str | None = None
    disk: str = "auto"
    threads: int | None = None
    plan: Plan | None = None

    @property
    def presets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(preset(quant) for quant in self.quants))

    @property
    def with_imatrix(self) -> bool:
        return self.imatrix is not None or self.calibration is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A build that nothing stands in the way of, before a byte of it is here."""

    request: BuildRequest
    found: Preflight
    candidate: Candidate
    allowed: Allowed


def make(model: str, options: Options) -> BuildRequest:
    """Everything checked before any work, then, where a step needs it, the source on this disk.

    Raises the first thing that is in the way.
    """
    from quantplan.cli.build_fetch import fetch_what_lacks
    from quantplan.pipeline.build import needs_source
    from quantplan.pipeline.disk import DiskMode

    one = planned(model, options)
    if one.candidate.repository is not None and needs_source(one.request, tell=lambda step, what: None):
        remote = one.request.disk is DiskMode.REMOTE
        fetch_what_lacks(one.candidate, one.found, one.request.converter, one.allowed, remote=remote)
    return one.request


def planned(model: str, options: Options) -> Planned:
    """Everything checked. Raises the first thing that is in the way; nothing is downloaded."""
    from quantplan.cli import build_types
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.build import settle_disk
    from quantplan.pipeline.candidate import find_candidate
    from quantplan.pipeline.convert import has_projector, wanted_outtype, weight_dtypes
    from quantplan.pipeline.disk import DiskMode

    presets, chosen = options.presets, corpora(options.texts)
    overrides, split_bytes = build_types.overrides(options), build_types.split_bytes(options)
    build_types.check_matrix(options, chosen)
    candidate = find_candidate(model)
    look_first(candidate, options)
    tools, converter = tools_for_build(options.llama)
    host = detect_host()
    settings = EvalSettings(
        n_chunks=options.chunks, n_threads=options.threads or host.cpu.n_threads,
        n_gpu_layers=ALL_LAYERS if tools.backend == "cuda" else 0,
    )  # fmt: skip
    found = examined(candidate, options, chosen, settings, host, converter)
    for refusal in found.refusals:
        raise refusal
    source = source_of(candidate, found, converter, options.allowed)
    dtypes = weight_dtypes(source) if candidate.repository is None else _dtypes(candidate)
    outtype, outtype_warning = wanted_outtype(options.outtype, dtypes)

    def plan(file: Path, quant: str) -> Plan | None:
        from quantplan.cli.planning import plan_file

        if options.plan is not None and quant == options.plan.quant:
            return replace(options.plan, source={**options.plan.source, "file": file.name})
        return plan_file(file, quant=quant, host=host, name=source.name)

    request = BuildRequest(
        source=source, quants=presets, output=options.output, tools=tools, converter=converter, corpora=chosen,
        settings=settings, make_plan=plan, clean=options.clean, outtype=outtype, overrides=overrides,
        mmproj=options.mmproj if options.mmproj is not None else has_projector(source, converter),
        imatrix=options.imatrix, calibration=options.calibration, split_bytes=split_bytes,
        calibration_chunks=options.calibration_chunks or -1, disk=DiskMode(options.disk),
        warnings=(*found.warnings, *([outtype_warning] if outtype_warning else [])),
        host={"fingerprint": host.fingerprint, "cpu": host.cpu.model, "threads": settings.n_threads},
    )  # fmt: skip
    ours = found.sizes is not None and found.sizes.source_bytes > 0
    request = replace(request, sizes=sizes_of(request, found), source_is_ours=ours, remote=found.remote)
    if candidate.repository is not None:
        request = settle_disk(request)
    return Planned(request=request, found=found, candidate=candidate, allowed=options.allowed)


def _dtypes(candidate: Candidate) -> frozenset[str]:
    return frozenset(tensor.dtype for tensor in candidate.checkpoint.tensors or ())


def source_of(candidate: Candidate, found: Preflight, converter: Path, allowed: Allowed) -> Source:
    """The source as it lies here, or as it will: nothing is downloaded."""
    from quantplan.pipeline.planned_source import planned_source
    from quantplan.pipeline.source import open_source

    if candidate.repository is not None and found.needed is not None:
        return planned_source(candidate, found.needed)
    assert candidate.folder is not None
    return open_source(candidate.folder, converter=converter, allow_pickle=allowed.pickle)


def sizes_of(request: BuildRequest, found: Preflight) -> BuildSizes | None:
    """The size of every file of this very build; None where the tables do not know the architecture."""
    from quantplan.pipeline.build import BASELINE, logits_bytes
    from quantplan.pipeline.sizes import build_sizes

    facts = found.facts
    if facts is None:
        return None
    matrices = 2 * facts.parameters
    sizes = build_sizes(
        facts, (BASELINE, *request.quants), converted_as=request.converted_as, overrides=request.overrides,
        kv_bytes=found.vocabulary.kv_bytes_with(facts.tensors) if found.vocabulary else None,
        imatrix=request.work().imatrix, logits_bytes=logits_bytes(request),
        mmproj_bytes=max(0, request.source.weight_bytes - matrices) if request.mmproj else 0,
    )  # fmt: skip
    if found.sizes is None:
        return sizes
    return replace(
        sizes, source_bytes=found.sizes.source_bytes, small_source_bytes=found.sizes.small_source_bytes,
        digests_bytes=found.sizes.digests_bytes,
    )  # fmt: skip


def look_first(candidate: Candidate, options: Options) -> None:
    """What is wrong with the model itself is said before what is missing on the host."""
    from quantplan.pipeline.needed import needed_files
    from quantplan.pipeline.presets_check import check_presets
    from quantplan.pipeline.remote.weights import remote_weights

    needed = needed_files(candidate.files, allow_code=options.allowed.code, allow_pickle=options.allowed.pickle)
    if options.disk == "remote":
        remote_weights(candidate, needed)
    try:
        facts = facts_of(candidate.checkpoint)
    except UnsupportedArchitecture:
        return  # the converter may know it all the same
    for checked in check_presets(facts, options.presets, kv_bytes=None):
        if checked.error is not None:
            raise checked.error
        if checked.needs_imatrix and not options.with_imatrix:
            raise ImatrixNeeded(preset=checked.name)


def examined(
    candidate: Candidate, options: Options, texts: tuple[Corpus, ...], settings: EvalSettings, host: HostFacts,
    converter: Path | None,
) -> Preflight:  # fmt: skip
    """The preflight of this build."""
    from quantplan.pipeline.build import BASELINE
    from quantplan.pipeline.checks import Asked
    from quantplan.pipeline.disk import DiskMode
    from quantplan.pipeline.preflight import examine

    asked = Asked(
        quants=options.presets, baseline=BASELINE, texts=tuple(text.name for text in texts), n_ctx=settings.n_ctx,
        n_chunks=settings.n_chunks, output=options.output, converter=converter, allow_code=options.allowed.code,
        allow_pickle=options.allowed.pickle, with_imatrix=options.with_imatrix, mode=DiskMode(options.disk),
    )  # fmt: skip
    return examine(candidate, asked, host=host)


def preflight(model: str, options: Options) -> Preflight:
    """What `--dry-run` shows. Without the tools, what only the converter can tell is left out."""
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.candidate import find_candidate

    try:
        converter: Path | None = tools_for_build(options.llama)[1]
    except ToolMissing:
        converter = None
    texts, settings = corpora(options.texts), EvalSettings(n_chunks=options.chunks)
    return examined(find_candidate(model), options, texts, settings, detect_host(), converter)


def tools_for_build(llama: Path | None) -> tuple[Toolchain, Path]:
    """Tools that work here, and the converter with all it imports. Raises ToolMissing or ToolFailed."""
    from quantplan.llama import fetch, self_test
    from quantplan.llama.toolchain import converter_script, find_toolchain

    tools = find_toolchain(explicit=llama)
    converter = converter_script(tools)
    if converter is None:
        raise ToolMissing(tool="convert_hf_to_gguf.py", why="is not here: it comes with the pinned toolchain")
    lacking = fetch.missing_converter_modules()
    if lacking:
        raise ToolMissing(tool="the build extra", why=f"is not installed: Python lacks {', '.join(lacking)}")
    result = self_test.self_tested(tools)
    if not result.ok:
        raise ToolFailed(step="self-test", argv=("llama-quantize",), returncode=1, last_lines=result.failures)
    return tools, converter


def corpora(texts: tuple[str, ...]) -> tuple[Corpus, ...]:
    """Named texts: the given ones, else those that ship. Raises BadModelFile for one that is not readable text."""
    if not texts:
        shipped = sorted(data_file("bundled", "eval").glob("*.txt"))
        return tuple(Corpus(name=path.stem, path=path) for path in shipped)
    found = []
    for text in texts:
        name, mark, rest = text.partition("=")
        path = Path(rest if mark else text)
        try:
            path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BadModelFile(path=path, why="no such text") from None
        except UnicodeDecodeError as error:
            raise BadModelFile(path=path, why="is not UTF-8 text", offset=error.start) from error
        found.append(Corpus(name=name if mark else path.stem, path=path))
    return tuple(found)
