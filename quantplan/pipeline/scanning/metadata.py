"""What a header claims and says: counts that make an engine allocate, and texts that a terminal or a reader would
take for something else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from quantplan.artifact.results import Finding, Severity
from quantplan.model.gguf_header import ArrayInfo, GgufHeader
from quantplan.pipeline.scanning.template import KEY
from quantplan.pipeline.scanning.template_text import first_invisible

TEMPLATE_KEY = KEY
MAX_LAYERS, MAX_EXPERTS = 512, 1024  # src/llama-hparams.h of 0c1e570: LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
MAX_CONTEXT = 2**24  # tokens; the longest that a model of the catalog was trained for is 10 million
_LINE_BREAKS = re.compile(r"[\r\v\f\x1c-\x1f\x85\u2028\u2029]")
_LONG_TEXTS = ("description", "license", "template", "system_prompt", "prompt", "suffix", "prefix")
_ADDRESS = re.compile(r"(?:https?://[\w.-]+(?::\d+)?(?:/[^\s\x00-\x1f]*)?)?")


def metadata_findings(header: GgufHeader, file: str) -> Iterator[Finding]:
    """Texts and claims of the metadata; the templates are a matter of their own."""
    for key, value in header.metadata.items():
        if isinstance(value, ArrayInfo) and value.type_name == "UINT8" and not key.startswith("tokenizer."):
            said = f"{key} has {value.n:,} bytes of text: not looked into"
            yield _finding("metadata-size", Severity.WARNING, said, file, key)
        if is_template(key):
            continue
        texts = value if isinstance(value, tuple) else (value,)
        for text in texts:
            if isinstance(text, str):
                yield from _text(key, text, file)
    yield from _claims(header, file)


def templates(metadata: Mapping[str, object]) -> Mapping[str, object]:
    """The chat templates by key; a value that is no text is none."""
    return {key: value for key, value in metadata.items() if is_template(key)}


def is_template(key: str) -> bool:
    """Whether the key holds a chat template: the default one, or one by name."""
    return key == TEMPLATE_KEY or key.startswith(f"{TEMPLATE_KEY}.")


def _text(key: str, text: str, file: str) -> Iterator[Finding]:
    broken = _LINE_BREAKS.search(text)
    is_short = not any(part in key for part in _LONG_TEXTS)
    if broken or (is_short and "\n" in text and key.startswith("general.")):
        char = broken[0] if broken else "\n"
        said = f"{key} has the line break U+{ord(char):04X}: printed as it is, it writes over what stands there"
        yield _finding("terminal", Severity.WARNING, said, file, key)
    hidden = first_invisible(text)
    if hidden:
        kind, at = hidden
        severity = Severity.ERROR if kind == "bidi" else Severity.WARNING
        said = f"{key} has the {kind} character U+{ord(text[at]):04X}: what is shown is not what is there"
        yield _finding("hidden-text", severity, said, file, key)
    if key.endswith("url") and not _ADDRESS.fullmatch(text):
        said = f"{key} is no web address: {text[:60]!r}"
        yield _finding("metadata-url", Severity.WARNING, said, file, key)


def _claims(header: GgufHeader, file: str) -> Iterator[Finding]:
    """Counts that no model has: an engine sizes its tables and caches by them."""
    arch = str(header.metadata.get("general.architecture", ""))
    wanted = (
        ("block_count", 1, MAX_LAYERS, "the engine has room for no more"),
        ("expert_count", 0, MAX_EXPERTS, "the engine has room for no more"),
        ("context_length", 1, MAX_CONTEXT, "a server that takes the model's own context allocates for it"),
        ("attention.head_count", 1, 2**16, "heads divide the width"),
        ("embedding_length", 1, 2**20, "no layer is as wide"),
    )
    for name, least, most, why in wanted:
        key = f"{arch}.{name}"
        value = header.metadata.get(key)
        if isinstance(value, int) and not least <= value <= most:
            yield _finding("claims", Severity.ERROR, f"{key} is {value:,}, not {least} to {most:,}: {why}", file, key)
    width = header.metadata.get(f"{arch}.embedding_length")
    row = next((t.shape[0] for t in header.tensors if t.name == "token_embd.weight"), None)
    if isinstance(width, int) and row is not None and row != width:
        said = f"{arch}.embedding_length is {width:,}, token_embd.weight has rows of {row:,}"
        yield _finding("claims", Severity.ERROR, said, file, f"{arch}.embedding_length")


def _finding(rule: str, severity: Severity, message: str, file: str, where: str) -> Finding:
    return Finding(rule=f"scan/{rule}", severity=severity, message=message, file=file, where=where)
