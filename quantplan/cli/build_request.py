"""From what was typed to a BuildRequest: the model's folder, the tools, the texts, a planner for this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.artifact.plan_file import Plan
from quantplan.cli.options import preset
from quantplan.errors import BadModelFile, ImatrixNeeded, ToolFailed, ToolMissing, UnsupportedArchitecture
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
    from quantplan.pipeline.source import Source

ALL_LAYERS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a source may bring only with a yes: its own Python code, pickled weights."""

    code: bool = False
    pickle: bool = False


def make(
    model: str, *, quants: tuple[str, ...], output: Path, texts: tuple[str, ...], n_chunks: int, llama: Path | None,
    clean: bool, allowed: Allowed = Allowed(),
) -> BuildRequest:  # fmt: skip
    """Everything checked before any work, then the source on this disk. Raises the first thing that is in the way."""
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.candidate import find_candidate

    presets = tuple(dict.fromkeys(preset(quant) for quant in quants))
    chosen = corpora(texts)
    candidate = find_candidate(model)
    look_first(candidate, presets, allowed)
    tools, converter = tools_for_build(llama)
    host = detect_host()
    settings = EvalSettings(
        n_chunks=n_chunks, n_threads=host.cpu.n_threads, n_gpu_layers=ALL_LAYERS if tools.backend == "cuda" else 0
    )
    found = examined(candidate, presets, output, chosen, settings, host, converter, allowed)
    for refusal in found.refusals:
        raise refusal
    source = fetched(candidate, found, converter, allowed)

    def plan(file: Path, quant: str) -> Plan | None:
        from quantplan.cli.planning import plan_file

        return plan_file(file, quant=quant, host=host, name=source.name)

    return BuildRequest(
        source=source, quants=presets, output=output, tools=tools, converter=converter, corpora=chosen,
        settings=settings, make_plan=plan, clean=clean, warnings=found.warnings,
        host={"fingerprint": host.fingerprint, "cpu": host.cpu.model, "threads": settings.n_threads},
    )  # fmt: skip


def look_first(candidate: Candidate, presets: tuple[str, ...], allowed: Allowed) -> None:
    """What is wrong with the model itself is said before what is missing on the host."""
    from quantplan.pipeline.needed import needed_files
    from quantplan.pipeline.presets_check import check_presets

    needed_files(candidate.files, allow_code=allowed.code, allow_pickle=allowed.pickle)
    try:
        facts = facts_of(candidate.checkpoint)
    except UnsupportedArchitecture:
        return  # the converter may know it all the same
    for checked in check_presets(facts, presets, kv_bytes=None):
        if checked.error is not None:
            raise checked.error
        if checked.needs_imatrix:
            raise ImatrixNeeded(preset=checked.name)


def examined(
    candidate: Candidate, presets: tuple[str, ...], output: Path, texts: tuple[Corpus, ...], settings: EvalSettings,
    host: HostFacts, converter: Path | None, allowed: Allowed,
) -> Preflight:  # fmt: skip
    """The preflight of this build."""
    from quantplan.pipeline.build import BASELINE
    from quantplan.pipeline.checks import Asked
    from quantplan.pipeline.preflight import examine

    asked = Asked(
        quants=presets, baseline=BASELINE, texts=tuple(text.name for text in texts), n_ctx=settings.n_ctx,
        n_chunks=settings.n_chunks, output=output, converter=converter, allow_code=allowed.code,
        allow_pickle=allowed.pickle,
    )  # fmt: skip
    return examine(candidate, asked, host=host)


def preflight(
    model: str, *, quants: tuple[str, ...], output: Path, texts: tuple[str, ...], n_chunks: int, llama: Path | None,
    allowed: Allowed = Allowed(),
) -> Preflight:  # fmt: skip
    """What `--dry-run` shows. Without the tools, what only the converter can tell is left out."""
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.candidate import find_candidate

    presets = tuple(dict.fromkeys(preset(quant) for quant in quants))
    try:
        converter: Path | None = tools_for_build(llama)[1]
    except ToolMissing:
        converter = None
    return examined(
        find_candidate(model), presets, output, corpora(texts), EvalSettings(n_chunks=n_chunks), detect_host(),
        converter, allowed,
    )  # fmt: skip


def fetched(candidate: Candidate, found: Preflight, converter: Path, allowed: Allowed) -> Source:
    """The source on this disk: of a repository, every needed file downloaded and proved."""
    from dataclasses import replace

    from quantplan.cli.progress import DownloadBar
    from quantplan.pipeline.download import download
    from quantplan.pipeline.source import open_source

    if candidate.repository is None or candidate.hub is None:
        assert candidate.folder is not None
        return open_source(candidate.folder, converter=converter, allow_pickle=allowed.pickle)
    assert found.needed is not None
    bar = DownloadBar(candidate.repository.id)
    got = download(candidate.hub, candidate.repository, found.needed.all, progress=bar)
    source = open_source(got.folder, name=candidate.name, converter=converter, allow_pickle=allowed.pickle)
    return replace(
        source, repo=candidate.repository.id, revision=candidate.repository.commit, licence=candidate.licence
    )


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
