"""A repository at one commit as a source of facts: each fact is fetched once and then kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from quantplan import errors
from quantplan.model.gguf_header import GgufHeader, parse_gguf_header
from quantplan.model.gguf_split import read_split
from quantplan.model.hub import Hub
from quantplan.model.hub_cache import HubCache
from quantplan.model.kept_facts import (
    from_kept,
    header_from_json,
    header_to_json,
    tensors_from_json,
    tensors_to_json,
    to_kept,
)
from quantplan.model.ranges import MAX_OVERSHOOT_BYTES, SHARD_OVERSHOOT_BYTES, OpenRange, RangeSource
from quantplan.model.repository import HubFile, Repository
from quantplan.model.safetensors_header import SafetensorsTensor, header_length, parse_safetensors_header

N_CONNECTIONS = 32
N_CONTENTS = 3  # times that a small file is read before its content is said to be wrong
FIRST_READ_BYTES = 128 * 1024  # where nothing tells how many tensors there are: enough for about 900
SLACK_BYTES, MAX_FIRST_READ_BYTES = 8 * 1024, 1024 * 1024


def find_repository(hub: Hub, cache: HubCache, repo: str, revision: str | None) -> tuple[Repository, tuple[str, ...]]:
    """The repository at a commit, and warnings. A commit that was seen before is answered without the hub; a branch
    is asked for again, and where the hub cannot be asked, answered as it was last seen."""
    asked = revision or "main"
    kept = _kept_repository(cache, repo, asked)
    if kept is not None:
        return kept, ()
    try:
        found = hub.repository(repo, revision)
    except (errors.HubOffline, errors.HubUnreachable) as error:
        commit = cache.commit_of(repo, asked)
        last = _kept_repository(cache, repo, commit) if commit else None
        if last is None:
            raise
        return last, (f"the hub was not asked ({error}): {repo} as last seen, at commit {last.commit[:12]}",)
    content = to_kept(asdict(found))
    for name in {repo, found.id}:
        cache.put(name, found.commit, "repository", content)
        cache.put_commit(name, asked, found.commit)
    renamed = found.id.lower() != repo.lower()
    return found, ((f"{repo} is now called {found.id}",) if renamed else ())


def _kept_repository(cache: HubCache, repo: str, commit: str) -> Repository | None:
    kept = from_kept(cache.get(repo, commit, "repository"))
    if kept is None:
        return None
    try:
        files = tuple(HubFile(**file) for file in kept.pop("files"))
        return Repository(files=files, unsafe=tuple(kept.pop("unsafe", ())), **kept)
    except (KeyError, TypeError):
        return None


class HubFiles:
    """CheckpointFiles of a repository; and the headers of its GGUF files."""

    def __init__(self, hub: Hub, cache: HubCache, repository: Repository) -> None:
        self.name = repository.id
        self._hub, self._cache, self.repository = hub, cache, repository
        self._sizes = {file.name: file.n_bytes for file in repository.files}

    def names(self) -> Sequence[str]:
        return tuple(self._sizes)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        repo, commit = self.repository.id, self.repository.commit
        file = self.repository.file(name)
        kept = self._cache.get(repo, commit, f"file:{name}")
        if kept is not None and len(kept) <= max_bytes and file.is_content(kept):
            return kept
        size = self._sizes.get(name)
        if size is not None and size > max_bytes:
            raise errors.BadModelFile(path=f"{repo}/{name}", why=f"has {size:,} bytes, more than {max_bytes >> 20} MiB")
        for _ in range(N_CONTENTS):
            content = self._hub.read(repo, commit, name, max_bytes=max_bytes)
            if file.is_content(content):
                self._cache.put(repo, commit, f"file:{name}", content)
                return content
        raise errors.HubContentDiffers(
            repo=repo, file=name, expected=str(file.digest), found=str(file.digest_of(content)), n_attempts=N_CONTENTS
        )

    def safetensors_headers(self, files: Mapping[str, int | None]) -> Mapping[str, tuple[SafetensorsTensor, ...]]:
        """All headers at once, over N_CONNECTIONS connections."""
        repo, commit = self.repository.id, self.repository.commit
        kept = tensors_from_json(self._cache.get(repo, commit, "safetensors"))
        if set(files) <= set(kept):
            return kept
        with ThreadPoolExecutor(max_workers=min(N_CONNECTIONS, len(files))) as pool:
            found = dict(zip(files, pool.map(self._safetensors_header, files, files.values()), strict=True))
        self._cache.put(repo, commit, "safetensors", tensors_to_json(found))
        return found

    def _safetensors_header(self, name: str, expected_bytes: int | None) -> tuple[SafetensorsTensor, ...]:
        ranges, size = self._hub.ranges(self.repository.id, self.repository.commit, name), self._sizes[name]
        label = f"{self.repository.id}/{name}"
        first = FIRST_READ_BYTES if expected_bytes is None else min(expected_bytes + SLACK_BYTES, MAX_FIRST_READ_BYTES)
        raw = read_range(ranges, 0, min(first, size or first))
        end = 8 + header_length(raw, name=label, file_bytes=size)
        if end > len(raw):
            raw += read_range(ranges, len(raw), end)
        return parse_safetensors_header(raw[8:end], name=label, file_bytes=size)

    def gguf_header(self, name: str) -> GgufHeader:
        """The header of one GGUF file, or of all shards of the model it belongs to."""
        repo, commit = self.repository.id, self.repository.commit
        folder, _, base = name.rpartition("/")
        prefix = f"{folder}/" if folder else ""

        def read(shard: str, overshoot_bytes: int = MAX_OVERSHOOT_BYTES) -> GgufHeader:
            file = self.repository.file(prefix + shard)
            ranges = self._hub.ranges(repo, commit, file.name)
            label = f"{repo}/{file.name}"
            with RangeSource(label, ranges, size=file.n_bytes, overshoot_bytes=overshoot_bytes) as source:
                return parse_gguf_header(source)

        def read_all(shards: Sequence[str]) -> Iterator[GgufHeader]:
            with ThreadPoolExecutor(max_workers=min(N_CONNECTIONS, len(shards))) as pool:
                yield from pool.map(lambda shard: read(shard, SHARD_OVERSHOOT_BYTES), shards)

        kept = header_from_json(self._cache.get(repo, commit, f"gguf:{name}"))
        if kept is not None:
            return kept
        header = read_split(base, read, where=f"{repo}/{folder}".rstrip("/"), read_all=read_all)
        self._cache.put(repo, commit, f"gguf:{name}", header_to_json(header))
        return header


def read_range(ranges: OpenRange, start: int, end: int) -> bytes:
    """Those bytes. An answer that is read to its end leaves its connection for the next request."""
    content = bytearray()
    with ranges(start, end) as answer:
        for piece in answer.chunks:
            content += piece
            if len(content) > end - start:
                break
    return bytes(content[: end - start])
