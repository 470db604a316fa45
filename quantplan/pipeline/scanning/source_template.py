"""The chat templates of a source repository, by the file that holds each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantplan.errors import BadModelFile
from quantplan.model.safetensors_header import MAX_INDEX_BYTES, parse_json_object
from quantplan.pipeline.scanning.files import Files
from quantplan.units import MIB

MAX_TEMPLATE_BYTES = 2 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTemplate:
    """One template; `is_default` where it is the one that a conversion takes."""

    text: str
    file: str
    where: str
    is_default: bool


def source_templates(files: Files, names: Sequence[str]) -> Iterator[SourceTemplate]:
    """All of them: chat_template.jinja before tokenizer_config.json, as transformers takes them. Raises BadModelFile,
    HubError."""
    has_default = False
    for name in sorted(names, key=lambda n: n != "chat_template.jinja"):
        if name.endswith(".jinja"):
            text = files.read(name, max_bytes=MAX_TEMPLATE_BYTES).decode("utf-8", "replace")
            is_default = name == "chat_template.jinja"
            has_default |= is_default
            yield SourceTemplate(text=text, file=name, where=name, is_default=is_default)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name in names:
            try:
                value = parse_json_object(files.read(name, max_bytes=MAX_INDEX_BYTES), name=name,
                                          max_bytes=MAX_INDEX_BYTES)  # fmt: skip
            except BadModelFile:
                continue  # told by the scan of the files
            for where, text in _of(value.get("chat_template")):
                is_default = not has_default and where == "chat_template"
                has_default |= is_default
                yield SourceTemplate(text=text, file=name, where=where, is_default=is_default)


def _of(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield "chat_template", value
    elif isinstance(value, Mapping):
        value = [{"name": k, "template": v} for k, v in value.items()]
    for one in value if isinstance(value, list) else ():
        text = one.get("template") if isinstance(one, Mapping) else None
        if isinstance(one, Mapping) and isinstance(text, str):
            name = str(one.get("name"))[:40]
            yield ("chat_template" if name == "default" else f"chat_template.{name}"), text
