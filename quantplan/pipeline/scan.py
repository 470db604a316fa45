"""A GGUF that somebody else made, looked at before anything loads it: its structure, read as untrusted input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantplan.artifact.results import Finding, Severity
from quantplan.errors import BadModelFile
from quantplan.model.gguf_header import ArrayInfo, GgufHeader, read_gguf_header
from quantplan.model.layer_rules import KNOWN_ARCHITECTURES
from quantplan.units import pad

_TOKENS = "tokenizer.ggml.tokens"
_SLACK_BYTES = 4096  # padding at the end that writers leave; more of it is data that no tensor names


def scan_structure(path: Path) -> tuple[Finding, ...]:
    """What is wrong with the file as a GGUF; of a split one with all its files. Nothing where it is sound.

    An error is what the engine refuses or reads beyond; a warning is what it takes and somebody should look at.
    """
    try:
        header = read_gguf_header(path)
    except BadModelFile as error:
        at = f" (at byte {error.offset:,})" if error.offset is not None else ""
        return (_finding("scan/structure", Severity.ERROR, f"{error.why}{at}", path, "do not load it; get it again"),)
    except OSError as error:
        return (_finding("scan/unreadable", Severity.ERROR, error.strerror or str(error), path),)
    return tuple(_of_header(header, path))


def _of_header(header: GgufHeader, path: Path) -> Iterator[Finding]:
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        yield _finding("scan/architecture", Severity.ERROR, "it names no architecture", path)
    elif arch not in KNOWN_ARCHITECTURES:
        yield _finding("scan/architecture", Severity.WARNING, f"architecture {arch!r} is not in our tables", path)
    if not header.tensors:
        yield _finding("scan/tensors", Severity.ERROR, "it has no tensors", path)
    yield from _counts(header, path, str(arch))
    yield from _trailing(header, path)


def _counts(header: GgufHeader, path: Path, arch: str) -> Iterator[Finding]:
    """The counts of the metadata against the tensors that are there."""
    n_layer = header.metadata.get(f"{arch}.block_count")
    blocks = {name.split(".")[1] for name in (t.name for t in header.tensors) if name.startswith("blk.")}
    if isinstance(n_layer, int) and blocks and len(blocks) != n_layer:
        text = f"{arch}.block_count is {n_layer}, its tensors are of {len(blocks)} blocks"
        yield _finding("scan/blocks", Severity.ERROR if len(blocks) < n_layer else Severity.WARNING, text, path)
    tokens = header.metadata.get(_TOKENS)
    n_tokens = tokens.n if isinstance(tokens, ArrayInfo) else len(tokens) if isinstance(tokens, tuple) else None
    rows = next((t.shape[1] for t in header.tensors if t.name == "token_embd.weight" and len(t.shape) > 1), None)
    if n_tokens is not None and rows is not None and n_tokens != rows:
        text = f"its vocabulary has {n_tokens:,} tokens, token_embd.weight has {rows:,} rows"
        yield _finding("scan/vocabulary", Severity.ERROR if n_tokens > rows else Severity.WARNING, text, path)


def _trailing(header: GgufHeader, path: Path) -> Iterator[Finding]:
    """Bytes behind the last tensor of each file."""
    for number, shard in enumerate(header.shards):
        own = [tensor for tensor in header.tensors if tensor.shard == number]
        if shard.file_bytes is None or not own:
            continue
        end = shard.data_offset + pad(own[-1].offset + own[-1].n_bytes, header.alignment)
        if shard.file_bytes > end + _SLACK_BYTES:
            extra = shard.file_bytes - end
            text = f"{extra:,} bytes lie behind the last tensor, which no tensor names"
            yield _finding("scan/trailing", Severity.WARNING, text, path.with_name(Path(shard.path).name))


def _finding(rule: str, severity: Severity, message: str, path: Path, help: str | None = None) -> Finding:  # noqa: A002
    return Finding(rule=rule, severity=severity, message=message, file=path.name, help=help)
