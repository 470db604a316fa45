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
_NO_TOKEN = 2**32 - 1  # -1 in a UINT32: include/llama.h, LLAMA_TOKEN_NULL
_AGAIN = "do not load it; get it again, or from somebody else"


def scan_structure(path: Path) -> tuple[Finding, ...]:
    """What is wrong with the file as a GGUF; of a split one with all its files. Nothing where it is sound.

    An error is what the engine refuses or reads beyond; a warning is what it takes and somebody should look at.
    """
    _, findings = read_structure(path)
    return findings


def read_structure(path: Path) -> tuple[GgufHeader | None, tuple[Finding, ...]]:
    """The header, None where it cannot be read; and what is wrong with it."""
    try:
        header = read_gguf_header(path)
    except BadModelFile as error:
        return None, (refused(error, path.name),)
    except OSError as error:
        why = error.strerror or str(error)
        return None, (Finding(rule="scan/unreadable", severity=Severity.ERROR, message=why, file=path.name),)
    return header, of_header(header, path.name)


def refused(error: BadModelFile, file: str) -> Finding:
    """The finding of what a reader refuses, with its rule, the key or tensor, and the byte."""
    rule = f"scan/{error.rule or 'structure'}"
    at = f" (at byte {error.offset:,})" if error.offset is not None else ""
    name = Path(error.path).name if Path(error.path).suffix else file  # of a split model, the shard
    return Finding(
        rule=rule, severity=Severity.ERROR, message=f"{error.why}{at}", file=file if "/" in file else name, help=_AGAIN,
        where=error.where, offset=error.offset,
    )  # fmt: skip


def of_header(header: GgufHeader, file: str) -> tuple[Finding, ...]:
    """What a header that can be read still has against it."""
    return tuple(_of_header(header, file))


def _of_header(header: GgufHeader, file: str) -> Iterator[Finding]:
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        yield _finding("scan/architecture", Severity.ERROR, "it names no architecture", file, "general.architecture")
    elif arch not in KNOWN_ARCHITECTURES and not is_projector(header):
        text = f"architecture {arch!r} is not in our tables"
        yield _finding("scan/architecture", Severity.WARNING, text, file, "general.architecture")
    if not header.tensors:
        yield _finding("scan/tensors", Severity.ERROR, "it has no tensors", file)
    if not is_projector(header):  # it has no blocks of a known architecture
        yield from _counts(header, file, str(arch))
    yield from _trailing(header, file)


def is_projector(header: GgufHeader) -> bool:
    """Whether the file is the eyes or ears of a model, and no model itself."""
    return header.metadata.get("general.type") == "mmproj" or header.metadata.get("general.architecture") == "clip"


def _counts(header: GgufHeader, file: str, arch: str) -> Iterator[Finding]:
    """The counts of the metadata against the tensors that are there."""
    key = f"{arch}.block_count"
    n_layer = header.metadata.get(key)
    blocks = {name.split(".")[1] for name in (t.name for t in header.tensors) if name.startswith("blk.")}
    if isinstance(n_layer, int) and blocks and len(blocks) != n_layer:
        text = f"{key} is {n_layer:,}, its tensors are of {len(blocks)} blocks"
        severity = Severity.ERROR if len(blocks) < n_layer else Severity.WARNING
        yield _finding("scan/blocks", severity, text, file, key)
    tokens = header.metadata.get(_TOKENS)
    n_tokens = tokens.n if isinstance(tokens, ArrayInfo) else len(tokens) if isinstance(tokens, tuple) else None
    rows = next((t.shape[1] for t in header.tensors if t.name == "token_embd.weight" and len(t.shape) > 1), None)
    if n_tokens is not None and rows is not None and n_tokens != rows:
        text = f"its vocabulary has {n_tokens:,} tokens, token_embd.weight has {rows:,} rows"
        severity = Severity.ERROR if n_tokens > rows else Severity.WARNING
        yield _finding("scan/vocabulary", severity, text, file, _TOKENS)
    yield from _token_ids(header, file, n_tokens)


def _token_ids(header: GgufHeader, file: str, n_tokens: int | None) -> Iterator[Finding]:
    """Ids of special tokens that lie outside the vocabulary: an index that the engine would read by."""
    for key, value in header.metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and isinstance(value, int)
        if is_id and n_tokens and not -1 <= int(str(value)) < n_tokens and value != _NO_TOKEN:
            text = f"{key} is {value:,}, the vocabulary has {n_tokens:,} tokens"
            yield _finding("scan/token-id", Severity.ERROR, text, file, key)


def _trailing(header: GgufHeader, file: str) -> Iterator[Finding]:
    """Bytes behind the last tensor of each file."""
    folder = file.rpartition("/")[0]
    for number, shard in enumerate(header.shards):
        own = [tensor for tensor in header.tensors if tensor.shard == number]
        if shard.file_bytes is None or not own:
            continue
        end = shard.data_offset + pad(own[-1].offset + own[-1].n_bytes, header.alignment)
        if shard.file_bytes > end + _SLACK_BYTES:
            name = "/".join(part for part in (folder, Path(shard.path).name) if part)
            text = f"{shard.file_bytes - end:,} bytes lie behind the last tensor, which no tensor names"
            yield Finding(rule="scan/trailing", severity=Severity.WARNING, message=text, file=name, offset=end)


def _finding(rule: str, severity: Severity, message: str, file: str, where: str | None = None) -> Finding:
    return Finding(rule=rule, severity=severity, message=message, file=file, where=where)
