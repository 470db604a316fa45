"""What a pickle would import and call, read from its opcodes: nothing is ever unpickled."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from quantplan.artifact.results import Finding, Severity
from quantplan.model.checkpoint import is_safe_name
from quantplan.units import MIB

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".pdparams")
MAX_OPCODES = 2_000_000
MAX_PICKLE_BYTES = 64 * MIB
MAX_MEMBERS = 50_000
_NAME = re.compile(r"[A-Za-z_][\w.]*")

# what torch's own loader takes with weights_only, and numpy's arrays
_WEIGHTS = {
    ("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device"), ("torch", "dtype"), ("torch", "Tensor"),
    ("_codecs", "encode"), ("numpy", "dtype"), ("numpy", "ndarray"), ("builtins", "set"), ("builtins", "bytearray"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_qtensor"), ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_parameter_with_state"), ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch.nn.parameter", "Parameter"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage"), ("torch.storage", "_load_from_bytes"),
}  # fmt: skip
_DTYPES = ("float", "bfloat", "int", "uint", "bool", "complex", "half", "double", "long", "short", "quint", "qint")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DANGER = _words(
    "os posix nt sys subprocess pty shutil socket builtins __builtin__ runpy importlib imp code codeop commands "
    "webbrowser ctypes multiprocessing threading asyncio signal pdb bdb timeit cProfile profile doctest trace "
    "pickle _pickle cloudpickle dill joblib marshal types inspect operator functools itertools pydoc platform "
    "tempfile pathlib io http urllib requests httpx ftplib smtplib telnetlib ssl site sysconfig venv ensurepip pip "
    "setuptools distutils logging zipimport linecache idlelib lib2to3 torch.hub torch._dynamo torch.utils "
    "torch.serialization torch.jit torch.fx numpy.testing numpy.f2py transformers aiohttp paramiko fabric "
    "posixpath shlex glob fileinput xmlrpc antigravity _io _osx_support _aix_support"
)


@dataclass(frozen=True, slots=True)
class Import:
    """A name that the pickle would import, the byte of the opcode; `module` None where it is put together."""

    module: str | None
    name: str
    offset: int


def scan_pickle_file(file: BinaryIO, name: str) -> Iterator[Finding]:
    """The findings of a file that holds pickles: bare, in torch's zip, or in numpy's formats."""
    head = file.read(16)
    file.seek(0)
    if head[:2] == b"PK":
        yield from _zip(file, name)
    elif head[:6] == b"\x93NUMPY":
        yield from _numpy(file, name, where=None)
    elif (
        head[:6] == b"7z\xbc\xaf\x27\x1c"
        or head[:4] in (b"Rar!", b"\x1f\x8b\x08\x00", b"BZh9")
        or head[:5] == b"\xfd7zXZ"
    ):
        said = "is packed in a way that torch does not write: scanners look past it, loaders may not"
        yield _finding("pickle-container", Severity.ERROR, said, name, offset=0)
    elif head[:4] not in (b"GGUF", b"ggml", b"tjgg", b"lmgg"):
        yield from _stream(file.read(MAX_PICKLE_BYTES), name, where=None)


def _zip(file: BinaryIO, name: str) -> Iterator[Finding]:
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        yield _finding("archive", Severity.ERROR, f"is no whole zip archive: {str(error)[:120]}", name, offset=0)
        return
    if len(members) > MAX_MEMBERS:
        yield _finding("archive", Severity.ERROR, f"has {len(members):,} members", name)
        return
    names: set[str] = set()
    for member in members:
        yield from _member(member, name, twice=member.filename in names)
        names.add(member.filename)
        if not member.filename.lower().endswith((".pkl", ".pickle", ".npy")) or member.flag_bits & 1:
            continue
        try:
            with archive.open(member) as part:
                raw = part.read(MAX_PICKLE_BYTES)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
            said = f"{member.filename} cannot be read by the zip's own rules ({str(error)[:100]}): loaders may not care"
            yield _finding("archive", Severity.ERROR, said, name, where=member.filename, offset=member.header_offset)
            continue
        if member.filename.endswith(".npy"):
            yield from _numpy(io.BytesIO(raw), name, where=member.filename)
        else:
            yield from _stream(raw, name, where=member.filename)


def _member(member: zipfile.ZipInfo, name: str, *, twice: bool) -> Iterator[Finding]:
    at = {"where": member.filename, "offset": member.header_offset}
    plain = member.filename.rstrip("/")
    if plain and not is_safe_name(plain):
        said = f"member {member.filename!r} leaves its folder when it is unpacked"
        yield _finding("path", Severity.ERROR, said, name, **at)  # type: ignore[arg-type]
    if twice:
        said = f"member {member.filename!r} is there twice: which one is read depends on who reads"
        yield _finding("archive", Severity.ERROR, said, name, **at)  # type: ignore[arg-type]
    if member.file_size > 100 * max(member.compress_size, 1) and member.file_size > 64 * MIB:
        said = f"member {member.filename!r} unpacks {member.compress_size:,} bytes to {member.file_size:,}"
        yield _finding("archive", Severity.ERROR, said, name, **at)  # type: ignore[arg-type]
    if member.flag_bits & 1:
        said = f"member {member.filename!r} is encrypted: nobody can look into it"
        yield _finding("archive", Severity.ERROR, said, name, **at)  # type: ignore[arg-type]


def _numpy(file: BinaryIO, name: str, *, where: str | None) -> Iterator[Finding]:
    """An array of objects is a pickle."""
    head = file.read(12)
    size = (
        int.from_bytes(head[8:10], "little") + 10 if head[6:7] == b"\x01" else int.from_bytes(head[8:12], "little") + 12
    )
    if size > 64 * 1024:
        yield _finding("archive", Severity.ERROR, f"declares a header of {size:,} bytes", name, where=where, offset=8)
        return
    file.seek(0)
    described = file.read(size)
    if b"'O'" in described or b"|O" in described:
        yield from _stream(file.read(MAX_PICKLE_BYTES), name, where=where, base=size)


def _stream(raw: bytes, name: str, *, where: str | None, base: int = 0) -> Iterator[Finding]:
    found, broken = read_imports(raw)
    if (
        broken is not None
        and raw[:1] != b"\x80"
        and not any(one.module and _NAME.fullmatch(one.module) for one in found)
    ):
        return  # no pickle at all: the first opcodes say nothing
    told: set[tuple[str | None, str]] = set()
    for one in found:
        if (one.module, one.name) in told:
            continue
        told.add((one.module, one.name))
        yield from _judge(one, name, where=where, base=base)
    if broken is not None:
        severity = Severity.ERROR if found else Severity.WARNING
        said = f"the pickle breaks off ({broken[0]}): what stands before has run by then"
        yield _finding("pickle-broken", severity, said, name, where=where, offset=base + broken[1])
    if all(_is_weights(one) for one in found):
        said = "holds pickled weights of known kinds only; safetensors cannot hold code at all"
        yield _finding("pickle", Severity.NOTE, said, name, where=where)


def _judge(one: Import, name: str, *, where: str | None, base: int) -> Iterator[Finding]:
    at = base + one.offset
    if one.module is None:
        said = "imports a name that it puts together as it runs"
        yield _finding("pickle-gadget", Severity.ERROR, said, name, where=where, offset=at)
    elif _is_weights(one):
        return
    elif one.module.split(".")[0] in _DANGER or any(one.module.startswith(d) for d in _DANGER if "." in d):
        said = f"would import and may call {one.module}.{one.name}: it runs code when it is loaded"
        yield _finding("pickle-gadget", Severity.ERROR, said, name, where=where, offset=at)
    else:
        said = f"would import {one.module}.{one.name}, which is no part of any weights"
        yield _finding("pickle-import", Severity.WARNING, said, name, where=where, offset=at)


def _is_weights(one: Import) -> bool:
    if (one.module, one.name) in _WEIGHTS:
        return one.name != "_load_from_bytes"  # a pickle inside a pickle
    is_torch = one.module in ("torch", "torch.cuda")
    return is_torch and (one.name.endswith("Storage") or one.name.startswith(_DTYPES))


def read_imports(raw: bytes) -> tuple[tuple[Import, ...], tuple[str, int] | None]:
    """(every name the pickles would import, in order; why and where reading broke off)."""
    found: list[Import] = []
    position, n_left = 0, MAX_OPCODES
    while position < len(raw):
        stream = io.BytesIO(raw[position:]) if position else io.BytesIO(raw)
        state = _Machine()
        at = 0
        try:
            for opcode, argument, offset in pickletools.genops(stream):
                at = offset or 0
                n_left -= 1
                if n_left < 0:
                    return tuple(found), ("more opcodes than any weights need", position + at)
                one = state.step(opcode, argument, position + at)
                if one is not None:
                    found.append(one)
        except Exception as error:  # whatever pickletools makes of hostile bytes
            if position and not _goes_on(raw, position):
                return tuple(found), None  # torch's old format goes on with raw numbers
            return tuple(found), (str(error)[:80] or type(error).__name__, position + at)
        position += stream.tell()
        if not _goes_on(raw, position):
            break
    return tuple(found), None


def _goes_on(raw: bytes, position: int) -> bool:
    """Whether another pickle follows."""
    return raw[position : position + 1] == b"\x80" and raw[position + 1 : position + 2] in (b"\2", b"\3", b"\4", b"\5")


_MARK = object()


class _Machine:
    """As much of a pickle machine as tells which texts STACK_GLOBAL takes: stack and memo, texts by value, the rest
    unknown. What each opcode takes and leaves is pickletools' own table."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: object, offset: int) -> Import | None:
        name, found = opcode.name, None
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            found = Import(module, attribute, offset)
        elif name == "STACK_GLOBAL":
            module_, attribute_ = self.stack[-2:] if len(self.stack) > 1 else (None, None)
            known = isinstance(module_, str) and isinstance(attribute_, str)
            found = Import(str(module_), str(attribute_), offset) if known else Import(None, "", offset)
        elif name in ("EXT1", "EXT2", "EXT4"):
            found = Import(None, str(argument), offset)
        self._move(opcode, argument)
        return found

    def _move(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        name, top = opcode.name, self.stack[-1] if self.stack else None
        if name == "MARK":
            self.stack.append(_MARK)
        elif name == "DUP":
            self.stack.append(top)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(str(argument))] = top
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(int(str(argument))))
        elif "UNICODE" in name or "STRING" in name:
            self.stack.append(argument if isinstance(argument, str) else str(argument))
        else:
            self._take([one.name for one in opcode.stack_before])
            self.stack += [None] * len(opcode.stack_after)

    def _take(self, kinds: list[str]) -> None:
        if "mark" in kinds:
            while self.stack and self.stack.pop() is not _MARK:
                pass
            kinds = kinds[: kinds.index("mark")]
        for _ in kinds:
            if self.stack:
                self.stack.pop()


def _finding(rule: str, severity: Severity, message: str, file: str, *, where: str | None = None,
             offset: int | None = None) -> Finding:  # fmt: skip
    return Finding(rule=f"scan/{rule}", severity=severity, message=message, file=file, where=where, offset=offset,
                   help="do not load it; take safetensors" if severity is Severity.ERROR else None)  # fmt: skip
