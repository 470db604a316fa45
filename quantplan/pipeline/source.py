"""A model in Hugging Face format on disk, looked at before any work: what is missing or refused is said first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import FileEntry
from quantplan.errors import BadModelFile, UnsupportedArchitecture

_TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.json", "tekken.json", "spiece.model")
# What the converter reads beside the weights; also what a rebuild is keyed by.
_READ = (
    "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tekken.json", "spiece.model",
    "chat_template.jinja", "chat_template.json", "params.json", "preprocessor_config.json", "processor_config.json",
    "README.md",
)  # fmt: skip
_REGISTERED = re.compile(r"@ModelBase\.register\(([^)]*)\)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checked folder. `files` are all that the conversion depends on, weights included; `known` their entries by
    name where the hub tells the hashes: such files need not be here to be known."""

    folder: Path
    name: str
    architecture: str
    config: dict[str, Any]
    files: tuple[Path, ...]
    weight_bytes: int
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None
    known: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def n_vocab(self) -> int | None:
        value = self.config.get("vocab_size")
        return value if isinstance(value, int) else None


def open_source(
    folder: Path, *, name: str | None = None, converter: Path | None = None, allow_pickle: bool = False
) -> Source:
    """The folder as a source. Raises BadModelFile (not a model folder, no tokenizer, no safetensors) and
    UnsupportedArchitecture (unknown to the converter, where its script is given)."""
    config_file = folder / "config.json"
    if not folder.is_dir():
        raise BadModelFile(path=folder, why="no such folder")
    if not config_file.is_file():
        raise BadModelFile(path=folder, why="has no config.json: not a model in Hugging Face format")
    config = _read_config(config_file)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadModelFile(path=config_file, why="names no architecture")
    if converter is not None and names[0] not in supported_architectures(converter):
        raise UnsupportedArchitecture(architecture=names[0], path=folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and allow_pickle:
        weights = sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise BadModelFile(path=folder, why="has no *.safetensors weights")
    if not any((folder / tokenizer).is_file() for tokenizer in _TOKENIZERS):
        raise BadModelFile(path=folder, why=f"has no tokenizer ({', '.join(_TOKENIZERS[:2])}, …)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index, {path.name for path in weights})
    read = [folder / item for item in (*_READ, index.name) if (folder / item).is_file()]
    return Source(
        folder=folder, name=name or folder.resolve().name, architecture=names[0], config=config,
        files=(*read, *weights), weight_bytes=sum(path.stat().st_size for path in weights),
        licence=_licence(folder / "README.md"),
    )  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 10_000_000:
            raise BadModelFile(path=path, why="is too large to be a configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(path=path, why=f"is not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise BadModelFile(path=path, why="is no JSON object")
    return config


def _check_index(index: Path, present: set[str]) -> None:
    named = _read_config(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise BadModelFile(path=index, why="has no weight_map")
    for name in sorted(set(named.values())):
        if Path(name).name != name:
            raise BadModelFile(path=index, why=f"names {name!r}, outside the folder")
        if name not in present:
            raise BadModelFile(path=index, why=f"names {name!r}, which is missing")


def _licence(card: Path) -> str | None:
    try:
        text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    found = re.search(r"^license:\s*(\S+)\s*$", text, re.MULTILINE) if text.startswith("---") else None
    return found[1] if found else None


def supported_architectures(converter: Path) -> frozenset[str]:
    """What the converter registers, read from its source text: importing it would load torch (3 s)."""
    names: set[str] = set()
    for module in (converter, *sorted((converter.parent / "conversion").glob("*.py"))):
        for arguments in _REGISTERED.findall(module.read_text(encoding="utf-8")):
            names.update(re.findall(r"[\"']([^\"']+)[\"']", arguments))
    return frozenset(names)
