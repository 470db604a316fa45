"""The files of a source: what would run when it is loaded, unpacked or opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing

from quantplan.artifact.results import Finding, Severity
from quantplan.errors import BadModelFile, QuantplanError
from quantplan.model.checkpoint import is_safe_name
from quantplan.model.safetensors_header import MAX_INDEX_BYTES, parse_json_object, parse_safetensors_header
from quantplan.pipeline.scanning.files import Entry, Files
from quantplan.pipeline.scanning.pickles import SUFFIXES, scan_pickle_file
from quantplan.pipeline.scanning.template_text import first_invisible

_PROGRAMS = (
    ".exe", ".dll", ".so", ".dylib", ".msi", ".bat", ".cmd", ".ps1", ".vbs", ".scr", ".com", ".jar", ".lnk", ".desktop",
    ".app", ".dmg", ".deb", ".rpm", ".apk", ".pif", ".hta", ".wasm", ".pyd", ".pyc", ".pth_", ".node",
)  # fmt: skip
_SCRIPTS = (".sh", ".bash", ".zsh", ".pl", ".rb", ".js", ".ipynb", ".lua")
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x7fELF", "a Linux program or library"), (b"MZ", "a Windows program or library"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"), (b"\xce\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a macOS program or Java class"), (b"#!", "a script that names its interpreter"),
)  # fmt: skip
_UNLOOKED = (".keras", ".h5", ".hdf5", ".mar", ".nemo", ".pmml", ".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar")
MAX_JSON = 64 * 1024 * 1024
MAX_HEADS = 64  # files of the hub whose first bytes are asked for
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")


def source_findings(files: Files, entries: Mapping[str, Entry], *, is_remote: bool) -> Iterator[Finding]:
    """Every file but GGUFs and templates, by name and by what it holds."""
    heads = MAX_HEADS
    for name, entry in entries.items():
        if entry.odd is not None:
            yield _finding("path", Severity.ERROR, f"is {entry.odd}", name)
            continue
        lower = name.lower()
        if lower.endswith(".gguf"):
            continue
        try:
            if lower.endswith(".safetensors"):
                yield from _safetensors(files, name, entry)
            elif lower.endswith(".json"):
                yield from _json(files, name)
            elif lower.endswith(SUFFIXES):
                with closing(files.open(name)) as file:
                    yield from scan_pickle_file(file, name)
            elif lower.endswith(".py"):
                said = "is Python of the repository: with trust_remote_code it runs here"
                yield _finding("remote-code", Severity.WARNING, said, name, help_="read it before you allow it")
            else:
                looks = not is_remote or (heads > 0 and not lower.endswith((".md", ".txt", ".jinja", ".model", ".png")))
                heads -= looks
                yield from _program(files, entry, looks=looks)
        except BadModelFile as error:
            rule = error.rule or ("safetensors" if lower.endswith(".safetensors") else "unreadable")
            yield Finding(rule=f"scan/{rule}", severity=Severity.ERROR, message=error.why, file=name,
                          offset=error.offset, where=error.where)  # fmt: skip
        except (QuantplanError, OSError) as error:
            yield _finding("unreadable", Severity.WARNING, str(error)[:200], name)


def _program(files: Files, entry: Entry, *, looks: bool) -> Iterator[Finding]:
    name, lower = entry.name, entry.name.lower()
    head = b""
    if looks and entry.n_bytes:
        with closing(files.open(name)) as file:
            head = file.read(16)
    what = next((said for magic, said in _MAGIC if head.startswith(magic)), None)
    if what and not (what.startswith("a script") and lower.endswith((".md", ".txt"))):
        severity = Severity.WARNING if head.startswith(b"#!") else Severity.ERROR
        yield _finding("program", severity, f"is {what}: no model needs it", name, offset=0)
    elif lower.endswith(_PROGRAMS):
        yield _finding("program", Severity.ERROR, "has the name of a program: no model needs it", name)
    elif lower.endswith(_SCRIPTS):
        yield _finding("program", Severity.WARNING, "is a script: no model needs it", name)
    elif head.startswith(b"\x80") and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        with closing(files.open(name)) as file:
            yield from scan_pickle_file(file, name)
    elif lower.endswith(_UNLOOKED):
        said = "is of a kind that can hold code and is not looked into"
        yield _finding("unlooked", Severity.WARNING, said, name)
    elif entry.is_executable and entry.n_bytes and not lower.endswith((".jinja", ".model", ".txt", ".md")):
        yield _finding("program", Severity.NOTE, "is marked as a program", name)


def _safetensors(files: Files, name: str, entry: Entry) -> Iterator[Finding]:
    from quantplan.model.safetensors_header import header_length

    with closing(files.open(name)) as file:
        raw = file.read(8)
        length = header_length(raw, name=name, file_bytes=entry.n_bytes)
        header = file.read(length)
    parse_safetensors_header(header, name=name, file_bytes=entry.n_bytes)
    told = parse_json_object(header, name=name, max_bytes=len(header)).get("__metadata__")
    if isinstance(told, Mapping):
        yield from _texts(told, name, header, prefix="__metadata__")


def _json(files: Files, name: str) -> Iterator[Finding]:
    raw = files.read(name, max_bytes=MAX_JSON)
    if name.rpartition("/")[2] in ("vocab.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        return  # tokens are any bytes, and nothing of them is printed or run
    if name.endswith("modules.json"):
        yield from _modules(raw, name)
        return
    value = parse_json_object(raw, name=name, max_bytes=MAX_INDEX_BYTES)
    for key in _CODE_KEYS:
        if value.get(key):
            said = f"{key} names code of the repository: {json.dumps(value[key])[:120]}"
            yield _finding("remote-code", Severity.WARNING, said, name, where=key, line=_line(raw, key),
                           help_="read that code before you allow it")  # fmt: skip
    for key in ("_attn_implementation", "attn_implementation", "_experts_implementation"):
        if isinstance(value.get(key), str) and "/" in str(value[key]):
            said = f"{key} names a kernel to be fetched from the hub and run: {str(value[key])[:80]!r}"
            yield _finding("remote-code", Severity.WARNING, said, name, where=key, line=_line(raw, key))
    yield from _paths(value, name, raw)
    yield from _texts({k: v for k, v in value.items() if k != "chat_template"}, name, raw)


def _modules(raw: bytes, name: str) -> Iterator[Finding]:
    """Sentence transformers import what this list names."""
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(path=name, why=f"is not JSON: {str(error)[:80]}") from None
    for one in told if isinstance(told, list) else ():
        kind = one.get("type") if isinstance(one, dict) else None
        if isinstance(kind, str) and not kind.startswith("sentence_transformers."):
            said = f"names the module {kind[:80]!r} to import"
            yield _finding("remote-code", Severity.WARNING, said, name, where="type", line=_line(raw, kind))


def _paths(value: Mapping[str, object], name: str, raw: bytes) -> Iterator[Finding]:
    """File names that a loader joins to the folder without a look."""
    shards = value.get("weight_map")
    named = [(str(k), v) for k, v in shards.items()] if isinstance(shards, Mapping) else []
    named += [(k, v) for k, v in value.items() if k.endswith(("_file", "_files", "_path")) and k != "_name_or_path"]
    for key, file in named:
        for one in file if isinstance(file, list) else [file]:
            if isinstance(one, str) and one and not is_safe_name(one) and not one.startswith(("http://", "https://")):
                said = f"{key[:80]!r} names {one[:120]!r}, which lies outside of the folder"
                yield _finding("path", Severity.ERROR, said, name, where=key, line=_line(raw, key))
                return


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")


def _texts(value: Mapping[str, object], name: str, raw: bytes, prefix: str = "") -> Iterator[Finding]:
    """Keys and short texts that a command would print."""
    for key, told in value.items():
        where = f"{prefix}.{key}" if prefix else key
        for text in (key, *(told if isinstance(told, list) else [told])):
            if not isinstance(text, str) or len(text) > 100_000:
                continue
            control, hidden = _CONTROL.search(text), first_invisible(text)
            if control:
                said = f"{where!r} has the control character U+{ord(control[0]):04X}, which a terminal acts on"
                yield _finding("terminal", Severity.ERROR, said, name, where=where, line=_line(raw, key))
            elif hidden and hidden[0] == "bidi":
                said = f"{where!r} has the bidi character U+{ord(text[hidden[1]]):04X}: shown is not what is there"
                yield _finding("hidden-text", Severity.ERROR, said, name, where=where, line=_line(raw, key))


def _line(raw: bytes, key: str) -> int | None:
    at = raw.find(json.dumps(key).encode())
    return raw.count(b"\n", 0, at) + 1 if at >= 0 else None


def _finding(rule: str, severity: Severity, message: str, file: str, *, where: str | None = None,
             line: int | None = None, offset: int | None = None, help_: str | None = None) -> Finding:  # fmt: skip
    return Finding(rule=f"scan/{rule}", severity=severity, message=message, file=file, where=where, line=line,
                   offset=offset, help=help_)  # fmt: skip
