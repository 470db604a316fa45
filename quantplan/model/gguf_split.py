"""Split GGUF files: the model read from all shards, given any one of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from quantplan.errors import BadModelFile
from quantplan.model.gguf_header import GgufHeader

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # src/llama.cpp: llama_split_path, "%s-%05d-of-%05d.gguf"
MAX_SHARDS = 4_096


def shard_names(name: str) -> tuple[str, ...]:
    """The names of all shards of the model that the file `name` belongs to; just `name` where it is no shard."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return (name,)
    n = int(match[3])
    return tuple(f"{match[1]}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)) if n <= MAX_SHARDS else ()


def read_split(
    name: str,
    read: Callable[[str], GgufHeader],
    *,
    where: PurePath | str,
    read_all: Callable[[Sequence[str]], Iterator[GgufHeader]] | None = None,
) -> GgufHeader:
    """One header over all shards: metadata of the first, tensors of all in order. `read` reads one file by name,
    `read_all` the other shards once it is known that there are some (by default one after the other).

    Raises BadModelFile naming the shard that is missing or does not belong.
    """
    given = read(name)
    n_shards = _count(given, "split.count", path=_at(where, name))
    if n_shards <= 1:
        return given
    names = shard_names(name)
    if len(names) != n_shards:
        why = f"is one of {n_shards} shards, but its name does not end in -00001-of-{n_shards:05d}.gguf"
        raise BadModelFile(path=_at(where, name), why=why, rule="gguf-split")
    others = [shard for shard in names if shard != name]
    headers = read_all(others) if read_all is not None else map(read, others)
    shards = []
    for i, shard in enumerate(names):
        path = _at(where, shard)
        try:
            header = given if shard == name else next(headers)
        except BadModelFile as error:
            why = f"shard {i + 1} of {n_shards}: {error.why}"
            raise BadModelFile(
                path=path, why=why, offset=error.offset, rule=error.rule or "gguf-split", where=error.where
            ) from None
        if _count(header, "split.no", path=path) != i or _count(header, "split.count", path=path) != n_shards:
            raise BadModelFile(path=path, why=f"does not say that it is shard {i + 1} of {n_shards}", rule="gguf-split")
        shards.append(header)
    return _merge(shards, path=_at(where, names[0]))


def _merge(shards: list[GgufHeader], *, path: str) -> GgufHeader:
    tensors = tuple(replace(t, shard=i) for i, header in enumerate(shards) for t in header.tensors)
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise BadModelFile(
                path=path, why=f"tensor {tensor.name!r} is in two shards", rule="gguf-split", where=tensor.name
            )
        seen.add(tensor.name)
    expected = _count(shards[0], "split.tensors.count", path=path)
    if expected != len(tensors):
        raise BadModelFile(
            path=path,
            why=f"the shards have {len(tensors):,} tensors, split.tensors.count says {expected:,}",
            rule="gguf-split",
        )
    sizes = [header.file_bytes for header in shards]
    return replace(
        shards[0],
        tensors=tensors,
        file_bytes=None if None in sizes else sum(size for size in sizes if size is not None),
        shards=tuple(info for header in shards for info in header.shards),
    )


def _count(header: GgufHeader, key: str, *, path: str) -> int:
    value = header.metadata.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**31:
        raise BadModelFile(path=path, why=f"key {key!r} is {value!r}, not a count", rule="gguf-split", where=key)
    return value


def _at(where: PurePath | str, name: str) -> str:
    return str(where / name) if isinstance(where, PurePath) else f"{where}/{name}"
