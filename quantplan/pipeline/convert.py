"""The conversion: a Hugging Face folder to one 16-bit GGUF, and to a projector where the model sees or hears."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry
from quantplan.llama import commands, output
from quantplan.llama.process import Runner
from quantplan.llama.toolchain import COMMIT
from quantplan.llama.types import Completed
from quantplan.pipeline.disk import DiskMode
from quantplan.pipeline.files import hash_of_list
from quantplan.pipeline.remote.steps import fed_conversion, how_read
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import CONVERTED, MMPROJ
from quantplan.pipeline.source import Source
from quantplan.pipeline.steps import Step, Tell, shown, verify_gguf

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_PACKAGES = ("torch", "transformers", "sentencepiece", "tokenizers")  # what of Python the result rests on
_HOW_READ = "how the source was read"
_MMPROJ_MAP = re.compile(r"^MMPROJ_MODEL_MAP[^{]*\{(.*?)^\}", re.DOTALL | re.MULTILINE)


def convert_step(work: Workplace, *, tell: Tell, mmproj: bool = False) -> Step:
    """The step that writes the 16-bit GGUF, or with `mmproj` the projector.

    Weights that are read from the hub give the same bytes: the step is recorded as if they had been in the folder.
    """
    source, request = work.request.source, work.request
    name = work.file_name(MMPROJ if mmproj else CONVERTED)
    link = work.folder / source.name  # the converter derives metadata from the folder's name: never a local path
    partial = Path(name + ".partial")
    argv = commands.convert(
        (sys.executable,), request.converter, Path(link.name), partial, outtype=request.outtype, mmproj=mmproj
    )
    argv = (*argv, "--model-name", source.name)

    def fed(_partial: Path, run: Runner) -> Completed:
        return fed_conversion(work, argv, step=step.name, extra_env=_OFFLINE, tell=tell, run=run)

    def attempt(_partial: Path, run: Runner) -> Completed:
        link.unlink(missing_ok=True)
        link.symlink_to(source.folder.resolve(), target_is_directory=True)
        try:
            return run(argv, step=step.name, extra_env=_OFFLINE)
        finally:
            link.unlink(missing_ok=True)

    step = Step(
        name="convert mmproj" if mmproj else "convert", argv=argv, output=name,
        attempt=fed if request.disk is DiskMode.REMOTE else attempt,
        shown_argv=("python", *shown(argv[1:], folder=work.folder)), inputs=source_entries(work),
        tool_build=converter_build(), verify=verify_gguf,
        progress=None if request.disk is DiskMode.REMOTE else _percent,
        expected_bytes=request.sizes.of(MMPROJ if mmproj else CONVERTED) if request.sizes else None,
    )  # fmt: skip
    return step


def keep_how_read(work: Workplace) -> None:
    """Before a conversion: whether its weights are read from the hub. That leaves no trace in what it makes."""
    request = work.request
    told = how_read(request.remote) if request.disk is DiskMode.REMOTE and request.remote is not None else None
    work.record.keep(_HOW_READ, hash_of_list(source_entries(work)), told)


def kept_how_read(work: Workplace, entries: Sequence[FileEntry]) -> Mapping[str, Any] | None:
    """What was kept of the last conversion; None where the weights lay in a folder."""
    told = work.record.value(_HOW_READ, hash_of_list(entries))
    return told if isinstance(told, Mapping) else None


def source_entries(work: Workplace) -> tuple[FileEntry, ...]:
    """Every file that the conversion depends on, by hash."""
    source = work.request.source
    return tuple(
        source.known.get(path.name) or work.record.entry(path.resolve(), name=path.name) for path in source.files
    )


@cache
def converter_versions() -> Mapping[str, str]:
    """What the converter runs with."""
    found = {"commit": COMMIT[:7], "python": ".".join(map(str, sys.version_info[:2]))}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def converter_build() -> str:
    """The same in one line: what a conversion is keyed by."""
    versions = {name: version for name, version in converter_versions().items() if name != "python"}
    return " ".join(f"{name} {version}" for name, version in versions.items())


def _percent(text: str) -> str | None:
    done = output.convert_progress(text)
    return f"{done} % written" if done is not None else None


def wanted_outtype(asked: str, dtypes: frozenset[str]) -> tuple[str, str | None]:
    """(bf16, f16 or f32; what is to be warned of). Asked may also be auto: 16 bits as the source has them.

    f16 of a bf16 source cuts off what is beyond ±65504 and below 6e-8: it can be worse than Q8_0.
    """
    if asked == "auto":
        return ("f16" if "F16" in dtypes and "BF16" not in dtypes and "F32" not in dtypes else "bf16"), None
    if asked == "f16" and "BF16" in dtypes:
        return asked, "the source is bf16: f16 cuts off its largest and smallest values, and can be worse than Q8_0"
    return asked, None


def weight_dtypes(source: Source) -> frozenset[str]:
    """The dtypes of all tensors, as safetensors names them."""
    from quantplan.model.safetensors_header import read_safetensors_header

    weights = (path for path in source.files if path.suffix == ".safetensors")
    return frozenset(tensor.dtype for path in weights for tensor in read_safetensors_header(path))


def has_projector(source: Source, converter: Path) -> bool:
    """Whether the converter makes an mmproj file of this model: it sees or hears, and the script knows how."""
    config = source.config
    parts = [config.get(key) for key in ("vision_config", "audio_config", "whisper_config", "vision_encoder")]
    if not any(isinstance(part, dict) and part for part in parts):
        return False
    vision = config.get("vision_config")
    named = vision.get("architectures") if isinstance(vision, dict) else None
    architecture = named[0] if isinstance(named, list) and named else source.architecture
    registry = converter.parent / "conversion" / "__init__.py"
    found = _MMPROJ_MAP.search(registry.read_text(encoding="utf-8")) if registry.is_file() else None
    return found is not None and f'"{architecture}"' in found[1]
