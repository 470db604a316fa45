"""From what was typed to a BuildRequest: the model's folder, the tools, the texts, a planner for this host."""

from __future__ import annotations

from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.cli.options import preset
from quantplan.errors import BadModelFile, BadValue, ToolFailed, ToolMissing, UnknownModel, UnsupportedArchitecture
from quantplan.llama.types import Toolchain
from quantplan.pipeline.build import BuildRequest
from quantplan.pipeline.evaluate import Corpus
from quantplan.places import data_file

ALL_LAYERS = 999


def make(
    model: str, *, quants: tuple[str, ...], output: Path, texts: tuple[str, ...], n_chunks: int, llama: Path | None,
    clean: bool,
) -> BuildRequest:  # fmt: skip
    """Everything checked before any work. Raises the error of the first thing that is missing."""
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.source import open_source

    presets = tuple(dict.fromkeys(preset(quant) for quant in quants))
    folder = model_folder(model)
    open_source(folder)  # what is wrong with the folder is said before what is missing on the host
    warnings = foresee(folder, presets)
    tools, converter = tools_for_build(llama)
    source = open_source(folder, converter=converter)
    host = detect_host()
    settings = EvalSettings(
        n_chunks=n_chunks, n_threads=host.cpu.n_threads, n_gpu_layers=ALL_LAYERS if tools.backend == "cuda" else 0
    )

    def plan(file: Path, quant: str) -> Plan | None:
        from quantplan.cli.planning import plan_file

        return plan_file(file, quant=quant, host=host, name=source.name)

    return BuildRequest(
        source=source, quants=presets, output=output, tools=tools, converter=converter, corpora=corpora(texts),
        settings=settings, make_plan=plan, clean=clean, warnings=warnings,
        host={"fingerprint": host.fingerprint, "cpu": host.cpu.model, "threads": settings.n_threads},
    )  # fmt: skip


def foresee(folder: Path, presets: tuple[str, ...]) -> tuple[str, ...]:
    """What the presets will make of this model, before any work: tensors that fall back to another type, as warnings.

    Raises BadValue for a preset that needs an importance matrix, since none is made here.
    """
    from quantplan.model.read import read_model
    from quantplan.quant.presets import apply_preset

    try:
        facts = read_model(str(folder))
    except UnsupportedArchitecture:
        return ()  # the converter may know it all the same
    warnings = []
    for name in presets:
        result = apply_preset(facts.tensors, facts.metadata, name)
        if result.needs_imatrix:
            raise BadValue(
                what="preset", value=name, why="needs an importance matrix for this model, and none is given"
            )
        if result.fallbacks:
            warnings.append(
                f"{name}: {len(result.fallbacks)} tensors have rows that do not fill its blocks and get another type "
                f"({result.bits_per_weight:.2f} bits per weight in all): {', '.join(result.fallbacks[:3])}"
            )
    return tuple(warnings)


def model_folder(model: str) -> Path:
    """The local folder of a model. Raises UnknownModel, or BadModelFile for what cannot be built from."""
    from quantplan.model import catalog

    given = Path(model)
    if given.is_dir():
        return given
    if given.is_file():
        raise BadModelFile(path=given, why="is a file: build starts from a folder in Hugging Face format")
    entry = catalog.find(model)
    if entry is not None and entry.folder is not None:
        return entry.folder
    if "/" in model and given.parent.is_dir():
        raise BadModelFile(path=given, why="no such folder")
    raise UnknownModel(model=model, near=(catalog.BUNDLED,))


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
