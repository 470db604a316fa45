"""A Hugging Face checkpoint, in a folder or on the hub: its configuration and its tensors' names, types, shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from quantplan.errors import BadModelFile
from quantplan.model.safetensors_header import (
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    SafetensorsTensor,
    parse_json_object,
    read_safetensors_header,
)
from quantplan.units import MIB

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_SHARD_FILES = 4_096
BYTES_PER_TENSOR = 100  # of a header beside the name: {"dtype":"F8_E4M3","shape":[…],"data_offsets":[…]}
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.\-+]+)", re.MULTILINE)


class CheckpointFiles(Protocol):
    """Where the files of a checkpoint lie."""

    name: str  # for messages

    def names(self) -> Sequence[str]:
        """All files, with `/` between folders."""
        ...

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """A whole small file. Raises BadModelFile where it is larger than max_bytes."""
        ...

    def safetensors_headers(self, files: Mapping[str, int | None]) -> Mapping[str, tuple[SafetensorsTensor, ...]]:
        """The tensors of each of these files; each with about how many bytes its header takes, None if unknown."""
        ...


class FolderFiles:
    """CheckpointFiles of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder

    def names(self) -> Sequence[str]:
        try:
            return tuple(sorted(p.name for p in self._folder.iterdir() if p.is_file()))
        except OSError as error:
            raise BadModelFile(path=self._folder, why=error.strerror or str(error)) from None

    def read(self, name: str, *, max_bytes: int) -> bytes:
        return read_small(self._folder / name, max_bytes=max_bytes)

    def safetensors_headers(self, files: Mapping[str, int | None]) -> Mapping[str, tuple[SafetensorsTensor, ...]]:
        return {name: read_safetensors_header(self._folder / name) for name in files}


def read_small(path: Path, *, max_bytes: int) -> bytes:
    """A whole local file of at most max_bytes. Raises BadModelFile."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise BadModelFile(path=path, why=f"has {size:,} bytes, more than {max_bytes >> 20} MiB")
        with path.open("rb") as file:
            return file.read(max_bytes)
    except (OSError, ValueError) as error:
        raise BadModelFile(path=path, why=getattr(error, "strerror", None) or str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`tensors` is None where there are no safetensors files: then only the configuration speaks."""

    config: Mapping[str, object]
    tensors: tuple[SafetensorsTensor, ...] | None
    has_chat_template: bool | None
    licence: str | None
    warnings: tuple[str, ...] = ()


def read_checkpoint(files: CheckpointFiles) -> Checkpoint:
    """Configuration and tensors of a checkpoint. Raises BadModelFile."""
    names = files.names()
    if "config.json" not in names:
        raise BadModelFile(path=files.name, why="has no config.json")
    config = read_json(files, "config.json", max_bytes=MAX_CONFIG_BYTES)
    shards = weight_files(files, names)
    tensors = _all_tensors(files, shards) if shards else None
    warnings = () if shards else (f"{files.name}: no safetensors files: sizes are derived from config.json",)
    return Checkpoint(
        config=config,
        tensors=tensors,
        has_chat_template=_has_chat_template(files, names),
        licence=_licence(files, names),
        warnings=warnings,
    )


def read_json(files: CheckpointFiles, name: str, *, max_bytes: int) -> dict[str, object]:
    return parse_json_object(files.read(name, max_bytes=max_bytes), name=f"{files.name}/{name}", max_bytes=max_bytes)


def weight_files(files: CheckpointFiles, names: Sequence[str]) -> Mapping[str, int | None]:
    """The safetensors files that make up the model: those the index names, or the only one there is; and about how
    many bytes the header of each takes, as far as the index tells."""
    if INDEX_FILE in names:
        index = read_json(files, INDEX_FILE, max_bytes=MAX_INDEX_BYTES)
        return _indexed_files(index, path=f"{files.name}/{INDEX_FILE}", present=frozenset(names))
    if SINGLE_FILE in names:
        return {SINGLE_FILE: None}
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name and "adapter" not in name]
    if len(found) > 1:
        raise BadModelFile(path=files.name, why=f"has {len(found)} safetensors files but no {INDEX_FILE}")
    return dict.fromkeys(found)


def _indexed_files(index: Mapping[str, object], *, path: str, present: frozenset[str]) -> dict[str, int]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModelFile(path=path, why="key 'weight_map' is not an object with tensors")
    shards: dict[str, int] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise BadModelFile(path=path, why=f"tensor {tensor[:80]!r}: its file is {str(file)[:80]!r}, not a name")
        shards[file] = shards.get(file, 0) + len(tensor) + BYTES_PER_TENSOR
    if len(shards) > MAX_SHARD_FILES:
        raise BadModelFile(path=path, why=f"names {len(shards):,} files, more than {MAX_SHARD_FILES:,}")
    for file in shards:
        if not is_safe_name(file) or not file.endswith(".safetensors"):
            raise BadModelFile(path=path, why=f"{file[:80]!r} is not a safetensors file of this model")
        if file not in present:
            raise BadModelFile(path=path, why=f"{file!r} is named but missing")
    return {file: shards[file] for file in sorted(shards)}


def is_safe_name(name: str) -> bool:
    """Whether a file name taken from a file stays inside its folder: relative, no `..`, printable, no backslash."""
    pure = PurePosixPath(name)
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and "\\" not in name
        and not pure.is_absolute()
        and ".." not in pure.parts
        and str(pure) == name
        and ":" not in pure.parts[0]
    )


def _all_tensors(files: CheckpointFiles, shards: Mapping[str, int | None]) -> tuple[SafetensorsTensor, ...]:
    headers = files.safetensors_headers(shards)
    seen: dict[str, str] = {}
    for shard in shards:
        for tensor in headers[shard]:
            if tensor.name in seen:
                why = f"tensor {tensor.name!r} is in {seen[tensor.name]} too"
                raise BadModelFile(path=f"{files.name}/{shard}", why=why)
            seen[tensor.name] = shard
    return tuple(tensor for shard in shards for tensor in headers[shard])


def _has_chat_template(files: CheckpointFiles, names: Sequence[str]) -> bool | None:
    if "chat_template.jinja" in names or "chat_template.json" in names:
        return True
    if "tokenizer_config.json" not in names:
        return None
    try:
        return bool(read_json(files, "tokenizer_config.json", max_bytes=32 * MIB).get("chat_template"))
    except BadModelFile:
        return None  # only this one fact is lost


def _licence(files: CheckpointFiles, names: Sequence[str]) -> str | None:
    """`license:` of the model card's front matter."""
    if "README.md" not in names:
        return None
    try:
        text = str(files.read("README.md", max_bytes=4 * MIB), "utf-8", "replace")
    except BadModelFile:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = _LICENCE.search(front[1]) if front else None
    return found[1] if found else None
